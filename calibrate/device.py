"""The device a calibration runs on: CPU or one CUDA GPU; timers, memory, clock and power."""

from __future__ import annotations

import platform
import resource
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import torch

from sim.types import BadInput

CPU_THREADS = 1
"""Threads of a measurement on the CPU: others on the machine disturb one thread least."""


class Timer:
    """Milliseconds between `start` and `stop` on the device's own clock."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self._began = self._ended = 0.0
        if cuda:
            self._first, self._second = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )

    def start(self) -> None:
        """Begin; on CUDA when the device gets there."""
        if self.cuda:
            self._first.record()
        else:
            self._began = perf_counter()

    def stop(self) -> None:
        """End; on CUDA when the device gets there."""
        if self.cuda:
            self._second.record()
        else:
            self._ended = perf_counter()

    def elapsed_ms(self) -> float:
        """Return the milliseconds between; on CUDA waits for the device."""
        if not self.cuda:
            return (self._ended - self._began) * 1e3
        self._second.synchronize()
        return float(self._first.elapsed_time(self._second))


class Device:
    """A device that was opened. `torch_device` is what tensors are created on."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device
        self.is_cuda = torch_device.type == "cuda"
        self._nvml = _nvml() if self.is_cuda else None

    @classmethod
    def open(cls, name: str) -> Device:
        """Return the device `cpu`, `cuda` or `cuda:N`.

        On the CPU torch is set to one thread. On a GPU cuDNN's attention is switched off: it would
        be the first choice on Hopper, and builds a plan for every new shape, half a second each.

        Raises:
            BadInput: the name is none of these, or the machine has no such GPU.
        """
        kind, _, index = name.partition(":")
        if name == "cpu":
            torch.set_num_threads(CPU_THREADS)
            return cls(torch.device("cpu"))
        if kind != "cuda" or (index and not index.isdigit()):
            raise BadInput(f"device '{name}': valid are cpu, cuda, cuda:N")
        if not torch.cuda.is_available():
            raise BadInput(
                f"device '{name}': torch {torch.__version__} sees no CUDA GPU here; valid: cpu"
            )
        number, count = int(index or 0), torch.cuda.device_count()
        if number >= count:
            raise BadInput(
                f"device '{name}': this machine has {count}; valid: cuda:0 to {count - 1}"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)
        return cls(device)

    @property
    def name(self) -> str:
        """Name of the GPU or of the processor."""
        if self.is_cuda:
            return torch.cuda.get_device_name(self.torch_device)
        return _processor()

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch_device)

    def timer(self) -> Timer:
        """Return a timer for work on this device."""
        return Timer(self.is_cuda)

    def reset_peak(self) -> None:
        """Forget the peak memory so far; the CPU's cannot be reset."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_bytes(self) -> int:
        """Return the most memory tensors took since `reset_peak`; CPU: the process ever."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch_device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def memory_bytes(self) -> tuple[int, int] | None:
        """Return bytes (free, in all) of a GPU, `None` for the CPU.

        What torch holds back for reuse counts as free.
        """
        if not self.is_cuda:
            return None
        free, total = torch.cuda.mem_get_info(self.torch_device)
        reserved = torch.cuda.memory_reserved(self.torch_device)
        return free + reserved - torch.cuda.memory_allocated(self.torch_device), total

    def sm_clock_mhz(self) -> float | None:
        """Return the clock of the multiprocessors now; `None` without nvidia-ml-py."""
        return self._read("nvmlDeviceGetClockInfo", 1)  # NVML_CLOCK_SM

    def power_w(self) -> float | None:
        """Return the power the GPU draws now; `None` without nvidia-ml-py."""
        milliwatts = self._read("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1e3

    def describe(self) -> dict[str, str | int | None]:
        """Return what identifies the device and its software, ready for JSON."""
        memory = self.memory_bytes()
        return {
            "device": self.name,
            "kind": self.torch_device.type,
            "torch": torch.__version__,
            "cuda": torch.version.cuda if self.is_cuda else None,
            "driver": self._driver(),
            "python": platform.python_version(),
            "memory_bytes": memory[1] if memory else None,
            "threads": None if self.is_cuda else torch.get_num_threads(),
        }

    def _read(self, query: str, *arguments: int) -> float | None:
        if self._nvml is None:
            return None
        try:
            return float(getattr(self._nvml, query)(self._nvml_handle, *arguments))
        except (self._nvml.NVMLError, AttributeError):
            return None

    @cached_property
    def _nvml_handle(self) -> Any:
        """The GPU by its UUID: CUDA_VISIBLE_DEVICES renumbers CUDA's devices, not NVML's."""
        assert self._nvml is not None
        uuid = f"GPU-{torch.cuda.get_device_properties(self.torch_device).uuid}"
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid)

    def _driver(self) -> str | None:
        if self._nvml is None:
            return None
        try:
            version = self._nvml.nvmlSystemGetDriverVersion()
        except self._nvml.NVMLError:
            return None
        return version.decode() if isinstance(version, bytes) else str(version)


def _processor() -> str:
    """Return the name of the processor where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _nvml() -> ModuleType | None:
    """Return the started NVML, `None` where nvidia-ml-py or the library is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    module: ModuleType = pynvml
    return module
