"""A profile for any model on any GPU, from peak figures: a bound, not a measurement."""

from __future__ import annotations

import math

from sim.costs.catalogue import DTYPE_BYTES, gpu_named, model_named
from sim.costs.memory import check_layout
from sim.costs.profile import (
    AllreduceTerm,
    AttentionRow,
    PrefillAttentionTerm,
    Profile,
    Terms,
    TokenCurve,
    TokenLine,
    profile_stem,
)
from sim.types import BadInput

MS_PER_S = 1e3


def roofline(
    model: str,
    gpu: str,
    tp: int = 1,
    pp: int = 1,
    dtype: str = "fp16",
    compute_efficiency: float = 1.0,
    bandwidth_efficiency: float = 1.0,
    link_efficiency: float = 1.0,
) -> Profile:
    """Return the profile of an ideal engine: every stage runs at the peak of what limits it.

    Dense layers and lm_head take the longer of reading their weights and computing; prefill
    attention the longer of reading KV and computing; decode attention reads KV; a ring all-reduce
    sends 2*(tp-1)/tp of the message. No host time, no latencies; gamma as without a fit. Marked
    "not measured" everywhere.

    Args:
        model: catalogue name of the model.
        gpu: catalogue name of the GPU.
        tp: tensor-parallel degree.
        pp: pipeline stages; only 1.
        dtype: fp16 or bf16 (the peak figures are theirs).
        compute_efficiency: share of the peak FLOPs reached (assumption: all).
        bandwidth_efficiency: share of the memory bandwidth reached (assumption: all).
        link_efficiency: share of the link bandwidth reached (assumption: all).
    """
    shape, device = model_named(model), gpu_named(gpu)
    check_layout(shape, tp, pp)
    if pp != 1:
        raise BadInput(f"roofline profiles have one pipeline stage, got pp {pp}")
    flops_per_ms = compute_efficiency * device.peak_flops_per_s * tp / MS_PER_S
    read_per_ms = bandwidth_efficiency * device.bandwidth_bytes_per_s * tp / MS_PER_S
    layer_kv_ms = shape.kv_bytes_per_token(dtype, tp) / shape.layers / read_per_ms
    layer_pair_flops = shape.attention_flops_per_pair / shape.layers
    link = link_efficiency * device.link_bytes_per_s * tp / (2 * (tp - 1)) if tp > 1 else None
    terms = Terms(
        dense=_matrices(shape.layers * shape.layer_matmul_params, dtype, read_per_ms, flops_per_ms),
        lm_head=_matrices(shape.lm_head_params, dtype, read_per_ms, flops_per_ms),
        # l*(l+2p)/2 query-key pairs in a chunk
        prefill_attention=PrefillAttentionTerm(
            read_token_ms=layer_kv_ms, quad_ms=layer_pair_flops / 2 / flops_per_ms
        ),
        decode_attention=(AttentionRow(kv_token_ms=layer_kv_ms),),
        allreduce=None if link is None else AllreduceTerm(bandwidth_bytes_per_s=link),
    )
    efficiencies = f"{compute_efficiency:g}/{bandwidth_efficiency:g}/{link_efficiency:g}"
    return Profile(
        name=f"{profile_stem(model, gpu, tp, pp)}_roofline",
        gpu=gpu,
        model=model,
        tp=tp,
        dtype=dtype,
        engine="roofline",
        basis="roofline",
        source="peak figures in sim/costs/catalogue/gpus.yaml",
        derivation=f"compute/memory/link efficiency {efficiencies}; no host time, no latencies",
        terms=terms,
    )


def _matrices(params: int, dtype: str, read_per_ms: float, flops_per_ms: float) -> TokenCurve:
    """Return the longer of reading `params` weights and multiplying T tokens with them."""
    read_ms = params * DTYPE_BYTES[dtype] / read_per_ms
    token_ms = 2 * params / flops_per_ms
    compute_bound_from = max(1, math.ceil(read_ms / token_ms))
    reading = TokenLine(base_ms=read_ms)
    return TokenCurve(lines=(reading, TokenLine(from_tokens=compute_bound_from, token_ms=token_ms)))
