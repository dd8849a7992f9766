"""A real device, model and KV cache on which `measure` runs its points."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import thread_time

import torch

from calibrate.device import Device
from calibrate.model import Transformer
from calibrate.plan import Setting
from calibrate.points import Limits, Point
from calibrate.runner import Chunk, Runner, Timing
from sim.costs.catalogue import Gpu, gpu_named, gpus, model_named
from sim.costs.memory import GPU_MEMORY_UTILIZATION, check_fits
from sim.types import BadInput

BLOCK_SIZE = 16
"""Tokens in a KV block."""

MS_PER_S = 1e3

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_MMAP_THRESHOLD = 32 << 20

CPU_KV_BYTES = 16 << 20
"""KV cache on the CPU: 4,096 tokens of tiny-llama; more leaves the processor's cache: a cliff."""

CPU_STEP_TOKENS, CUDA_STEP_TOKENS = 384, 16_384
"""Most prompt tokens of a step: on a GPU vLLM's limit of 2023; on the CPU 40 ms of tiny-llama."""

CPU_SEQUENCES, CUDA_SEQUENCES = 32, 256
"""Most prompts, and most decodes, of a step."""

PATH_NAMES = {False: "ragged", True: "padded"}
"""Padding-free or padded, as profiles name it."""


class DeviceRig:
    """Runs points on a device (the `Rig` of `calibrate.measure`).

    On the CPU the time in which the thread waited for a core is left out.

    Attributes:
        runner: model and KV cache.
        setting: for planning.
        limits: ends of the grid.
        shared: True on the CPU.
    """

    def __init__(
        self,
        device: Device,
        gpu: Gpu,
        model: Transformer,
        dtype: str,
        paths: Sequence[bool],
        weights: str,
    ) -> None:
        self._device, self._dtype, self._weights = device, dtype, weights
        self.shared = not device.is_cuda
        self._held: set[int] = set()
        step_tokens = CUDA_STEP_TOKENS if device.is_cuda else CPU_STEP_TOKENS
        sequences = CUDA_SEQUENCES if device.is_cuda else CPU_SEQUENCES
        if device.is_cuda:
            free_bytes, blocks, self._blocks_from = _blocks_that_fit(
                device, model, dtype, paths, step_tokens
            )
        else:
            free_bytes = gpu.memory_bytes
            blocks = CPU_KV_BYTES // (BLOCK_SIZE * model.spec.kv_bytes_per_token(dtype))
            self._blocks_from = f"{CPU_KV_BYTES >> 20} MiB of KV cache on the CPU"
        self._paths = paths
        self.runner = _runner(device, model, blocks)
        self.setting = Setting(model.spec, gpu, dtype, free_bytes, blocks, BLOCK_SIZE)
        self.limits = Limits(model.spec.max_length, blocks, BLOCK_SIZE, step_tokens, sequences)

    def about(self) -> dict[str, object]:
        """Return what the JSON beside the samples says of device, versions, model and engine."""
        kernels = self.kernels()
        return {
            "model": self.setting.model.name,
            "weights": self._weights,
            "dtype": self._dtype,
            "gpu": self.setting.gpu.name,
            "tp": 1,
            **self._device.describe(),
            "kernel": {path: kernel for path, (kernel, _) in kernels.items()},
            "kernel_note": {path: note for path, (_, note) in kernels.items()},
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks": self.setting.num_blocks,
            "num_gpu_blocks_from": self._blocks_from,
            "engine": {
                "max_num_seqs": self.limits.sequences,
                "max_num_batched_tokens": self.limits.step_tokens,
                "max_model_len": self.limits.max_length,
            },
            "statistic": "median of visits at the usual speed" if self.shared else "median run",
            "clocks": "not locked; SM clock and power are read after the runs of each point",
        }

    def kernels(self) -> dict[str, tuple[str, str]]:
        """Return path -> attention in use and why a better one was passed over."""
        found = {}
        for padded in self._paths:
            self.runner.padded = padded
            found[PATH_NAMES[padded]] = (self.runner.kernel, self.runner.kernel_note)
        return found

    def run(self, point: Point) -> Timing:
        """Run one forward pass of a point, its caches as the point says."""
        self.runner.padded = point.padded
        for sequence, (_, cached) in enumerate(point.chunks):
            self._pretend(sequence, cached)
        first_decode = len(point.chunks)
        for sequence, context in enumerate(point.decodes, start=first_decode):
            self._pretend(sequence, context)
        vocab = self.setting.model.vocab
        chunks = [
            Chunk(sequence, [token % vocab for token in range(new)], cached)
            for sequence, (new, cached) in enumerate(point.chunks)
        ]
        decodes = range(first_decode, first_decode + point.batch)
        if self._device.is_cuda:
            return self.runner.step(chunks, decodes)[1]
        began_s = thread_time()
        timing = self.runner.step(chunks, decodes)[1]
        return timing.without_waits(MS_PER_S * (thread_time() - began_s))

    def clear(self) -> None:
        """Give back the pages of the last point."""
        for sequence in self._held:
            self.runner.release(sequence)
        self._held.clear()

    def free(self) -> None:
        """Give the device back the memory that torch keeps for reuse."""
        if self._device.is_cuda:
            torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        """Start to watch the peak of memory."""
        self._device.reset_peak()

    def peak_bytes(self) -> int:
        """Return the peak since then; on the CPU that of the process so far."""
        return self._device.peak_bytes()

    def clock_and_power(self) -> tuple[float | None, float | None]:
        """Return the SM clock (MHz) and the power (W), where they are known."""
        return self._device.sm_clock_mhz(), self._device.power_w()

    def _pretend(self, sequence: int, cached: int) -> None:
        self.runner.pretend(sequence, cached)
        self._held.add(sequence)


def open_rig(
    model: str,
    device: str,
    dtype: str | None,
    paths: Sequence[bool],
    weights: Path | None = None,
    gpu: str | None = None,
) -> DeviceRig:
    """Open a device and load a model on it.

    Args:
        model: catalogue name.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: of weights and KV cache; default: fp32 on the CPU, else bf16.
        paths: which paths are run (False: padding-free, True: padded).
        weights: safetensors file or folder; default: random weights.
        gpu: catalogue name of the GPU; default: recognised by its name.

    Raises:
        BadInput: unknown model or GPU, no such device, or the model does not fit.
    """
    spec = model_named(model)
    opened = Device.open(device)
    if not opened.is_cuda:
        _keep_freed_memory()
    entry = _catalogue_gpu(opened, gpu)
    dtype = dtype or ("bf16" if opened.is_cuda else "fp32")
    check_fits(spec, entry, 1, dtype)
    if weights is None:
        transformer = Transformer.random(spec, dtype, opened.torch_device, seed=0)
    else:
        transformer = Transformer.load(spec, weights, dtype, opened.torch_device)
    named = "random" if weights is None else str(weights)
    return DeviceRig(opened, entry, transformer, dtype, paths, named)


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, so that tensors are not paged in anew in every step.

    By default that depends on what the process freed before: the same step takes 26 or 60 ms.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)


def _catalogue_gpu(device: Device, wanted: str | None) -> Gpu:
    """Return the catalogue entry of a device: every part of its name is in the device's."""
    if wanted is not None:
        return gpu_named(wanted)
    if not device.is_cuda:
        return gpu_named("cpu")
    name = device.name.lower()
    for entry in gpus():
        if all(part in name for part in entry.split("-")):
            return gpu_named(entry)
    raise BadInput(
        f"GPU '{device.name}' is not in the catalogue; name the nearest by --gpu: "
        f"{', '.join(sorted(gpus()))}"
    )


def _runner(device: Device, model: Transformer, num_blocks: int, *, graphs: bool = True) -> Runner:
    return Runner(
        model, device, num_blocks=num_blocks, block_size=BLOCK_SIZE, padded=False, graphs=graphs
    )


def _blocks_that_fit(
    device: Device, model: Transformer, dtype: str, paths: Sequence[bool], step_tokens: int
) -> tuple[int, int, str]:
    """Run the largest steps with a small cache and return what they leave for the real one.

    Returns:
        Bytes the process may use, KV blocks, and how they were found.
    """
    memory = device.memory_bytes()
    assert memory is not None
    free_bytes, total_bytes = memory
    own_bytes = torch.cuda.memory_allocated(device.torch_device)
    length = min(model.spec.max_length, step_tokens)
    steps = [((length, 0),) * (step_tokens // length)]
    steps.append(((step_tokens // CUDA_SEQUENCES, 0),) * CUDA_SEQUENCES)
    small = 2 * CUDA_SEQUENCES + step_tokens // BLOCK_SIZE
    # without graphs: they refer back to their runner, which would keep its cache until a collection
    runner = _runner(device, model, small, graphs=False)
    before = torch.cuda.memory_allocated(device.torch_device)
    device.reset_peak()
    for padded in paths:
        runner.padded = padded
        for lengths in steps:
            chunks = [Chunk(i, [1] * new) for i, (new, _) in enumerate(lengths)]
            runner.step(chunks, [])
            for chunk in chunks:
                runner.release(chunk.sequence)
    working_bytes = device.peak_bytes() - before
    del runner
    torch.cuda.empty_cache()
    kept_free = (1 - GPU_MEMORY_UTILIZATION) * total_bytes
    room_bytes = free_bytes - kept_free - working_bytes
    blocks = int(room_bytes // (BLOCK_SIZE * model.spec.kv_bytes_per_token(dtype)))
    if blocks < 1:
        raise BadInput(
            f"{model.spec.name} leaves no room for a KV cache on {device.name}: "
            f"{free_bytes / 1e9:.1f} GB free, {working_bytes / 1e9:.1f} GB for a step"
        )
    how = (
        f"measured: {GPU_MEMORY_UTILIZATION:g} of the memory less weights, other users and the "
        f"{working_bytes / 1e9:.2f} GB that a step of {step_tokens} tokens takes"
    )
    return free_bytes + own_bytes, blocks, how
