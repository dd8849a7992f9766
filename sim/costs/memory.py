"""What fits: weights, KV cache and activations of one instance (tp * pp GPUs)."""

from __future__ import annotations

from dataclasses import dataclass

from sim.costs.catalogue import DTYPE_BYTES, Gpu, Model
from sim.types import BadInput

TP_CHOICES = (1, 2, 4, 8)
"""Tensor-parallel degrees tried by `min_tp`."""

GPU_MEMORY_UTILIZATION = 0.9
"""Share of the memory an engine may fill; vLLM's default."""

RESERVED_STEP_TOKENS = 8192
"""Tokens whose activations the fallback formula keeps room for (an engine's start-up run)."""

RESIDUAL_COPIES = 3
"""Residual-width tensors alive at once in a layer: the residual, its norm, the layer's output."""


def check_layout(model: Model, tp: int, pp: int = 1) -> None:
    """Raise `BadInput` unless tp divides the heads and pp the layers."""
    if tp < 1 or model.heads % tp:
        raise BadInput(f"tp {tp} does not divide the {model.heads} heads of {model.name}")
    if model.kv_heads % tp and tp % model.kv_heads:
        raise BadInput(f"tp {tp} does not go with the {model.kv_heads} KV heads of {model.name}")
    if pp < 1 or model.layers % pp:
        raise BadInput(f"pp {pp} does not divide the {model.layers} layers of {model.name}")


def activation_bytes_per_token(model: Model, dtype: str) -> int:
    """Return the activation peak a token adds to a step, summed over the GPUs of an instance.

    The larger of the attention and the feed-forward stage of one layer, beside the residual-width
    tensors. An estimate: kernels differ in what they keep.
    """
    attention = (model.heads + 2 * model.kv_heads) * model.head_dim
    feed_forward = (3 if model.gated else 2) * model.ffn
    width = RESIDUAL_COPIES * model.hidden + max(attention, feed_forward)
    return width * DTYPE_BYTES[dtype]


def kv_blocks_by_formula(
    model: Model,
    gpu: Gpu,
    tp: int,
    pp: int,
    dtype: str,
    block_size: int,
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
) -> int:
    """Return the KV blocks theory leaves room for: a fallback.

    (utilization * memory - weights - activations) / block. Real engines report 10-30 % less;
    where memory binds that decides the result, so a profile's own number is preferred. Negative
    or zero: the model does not fit.
    """
    usable = gpu_memory_utilization * gpu.memory_bytes * tp * pp
    usable -= model.weight_bytes(dtype)
    usable -= RESERVED_STEP_TOKENS * activation_bytes_per_token(model, dtype)
    return int(usable // (model.kv_bytes_per_token(dtype, tp) * block_size))


@dataclass(frozen=True)
class Room:
    """How the memory of an instance is shared out.

    Attributes:
        num_gpu_blocks: KV blocks.
        block_size: tokens in a block.
        block_bytes: bytes of a block over all GPUs of the instance.
        max_step_tokens: tokens, padding included, whose activations still fit beside weights and
            KV cache; a longer step runs out of memory.
    """

    num_gpu_blocks: int
    block_size: int
    block_bytes: int
    max_step_tokens: int


def room(
    model: Model, gpu: Gpu, tp: int, pp: int, dtype: str, num_gpu_blocks: int, block_size: int
) -> Room:
    """Return the memory layout with a given number of KV blocks; `BadInput` if they do not fit."""
    memory = gpu.memory_bytes * tp * pp
    weights = model.weight_bytes(dtype)
    block_bytes = model.kv_bytes_per_token(dtype, tp) * block_size
    free = memory - weights - num_gpu_blocks * block_bytes
    step_tokens = free // activation_bytes_per_token(model, dtype)
    if num_gpu_blocks < 1 or step_tokens < 1:
        raise BadInput(
            f"num_gpu_blocks {num_gpu_blocks} ({_gb(num_gpu_blocks * block_bytes)}): {_gb(weights)}"
            f" of weights on {tp * pp} x {gpu.name} ({_gb(memory)}) leave room for 1 to "
            f"{max(0, memory - weights) // block_bytes} blocks, less activations"
        )
    return Room(num_gpu_blocks, block_size, block_bytes, step_tokens)


def min_tp(
    model: Model,
    gpu: Gpu,
    max_model_len: int | None = None,
    dtype: str = "fp16",
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
) -> int:
    """Return the smallest tensor-parallel degree at which the model is usable on a GPU.

    Of 1, 2, 4, 8: it divides the heads, and weights, activations and the KV cache of one request of
    `max_model_len` tokens (default: the model's longest) fit. `BadInput` when there is none.
    """
    length = max_model_len or model.max_length
    fitting = _fitting_tps(model, gpu, length, dtype, gpu_memory_utilization)
    if fitting:
        return fitting[0]
    raise BadInput(
        f"{model.name} ({_gb(model.weight_bytes(dtype))} of weights) with max_model_len {length} "
        f"does not fit {gpu.name} ({_gb(gpu.memory_bytes)}) at any tp of "
        f"{', '.join(map(str, TP_CHOICES))}"
    )


def check_fits(
    model: Model,
    gpu: Gpu,
    gpus: int,
    dtype: str = "fp16",
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
) -> None:
    """Raise `BadInput` with the numbers when the weights alone fill the usable memory."""
    weights = model.weight_bytes(dtype)
    usable = gpu_memory_utilization * gpu.memory_bytes * gpus
    if weights < usable:
        return
    fitting = _fitting_tps(model, gpu, 1, dtype, gpu_memory_utilization)
    advice = f"the smallest tp that fits is {fitting[0]}" if fitting else "no tp up to 8 fits"
    raise BadInput(
        f"{model.name} does not fit {gpus} x {gpu.name}: {_gb(weights)} of {dtype} weights, "
        f"{_gb(usable)} usable ({gpu_memory_utilization:g} of {_gb(gpu.memory_bytes * gpus)}); "
        f"{advice}"
    )


def _fitting_tps(
    model: Model, gpu: Gpu, tokens: int, dtype: str, gpu_memory_utilization: float
) -> list[int]:
    """Return the degrees at which the KV cache holds `tokens` tokens."""
    return [
        tp
        for tp in TP_CHOICES
        if model.heads % tp == 0
        and kv_blocks_by_formula(model, gpu, tp, 1, dtype, 1, gpu_memory_utilization) >= tokens
    ]


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
