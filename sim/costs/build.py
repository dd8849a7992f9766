"""Everything a study needs to know about one instance, from a few names."""

from __future__ import annotations

from dataclasses import dataclass

from sim.costs.catalogue import Model, gpu_named, model_named
from sim.costs.library import find_profile
from sim.costs.memory import (
    GPU_MEMORY_UTILIZATION,
    check_fits,
    check_layout,
    kv_blocks_by_formula,
    room,
)
from sim.costs.model import NO_HOST, StepCost
from sim.costs.profile import HostTerm, Profile
from sim.types import BadInput, CostModel


@dataclass(frozen=True)
class InstanceCost:
    """Latency and capacity of one instance.

    Attributes:
        cost: prices steps.
        profile: where the prices come from.
        num_gpu_blocks: KV blocks of the instance.
        kv_guessed: whether that is a formula's, neither the config's nor the profile's.
        block_size: tokens in a block.
        kv_block_bytes: bytes of a block over all GPUs of the instance (swap, transfer).
        max_step_tokens: tokens, padding included, beyond which activations run out of memory.
        max_model_len: longest sequence, tokens.
        flops_per_token: operations of a token outside attention.
        attention_flops_per_pair: operations of a query token with one key token.
        peak_flops_per_s: peak of all GPUs of the instance.
        notes: what the reader of any output must be told about the step times.
    """

    cost: CostModel
    profile: Profile
    num_gpu_blocks: int
    kv_guessed: bool
    block_size: int
    kv_block_bytes: int
    max_step_tokens: int
    max_model_len: int
    flops_per_token: float
    attention_flops_per_pair: float
    peak_flops_per_s: float
    notes: tuple[str, ...]

    @property
    def kv_notes(self) -> tuple[str, ...]:
        """What the reader of any output must be told about the KV cache."""
        notes = []
        if self.kv_guessed:
            notes.append(
                f"num_gpu_blocks {self.num_gpu_blocks} for {self.profile.name} is a formula's "
                "guess, often 10-30 % too high: give the number the engine reports"
            )
        tokens = self.num_gpu_blocks * self.block_size
        if tokens < self.max_model_len:
            notes.append(
                f"the KV cache holds {tokens} tokens, less than max_model_len {self.max_model_len}"
            )
        return tuple(notes)


def instance_cost(
    model: str,
    gpu: str,
    tp: int = 1,
    pp: int = 1,
    profile_name: str = "auto",
    *,
    num_gpu_blocks: int | None = None,
    block_size: int | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
    min_step_s: float = 0.0,
    host: HostTerm = NO_HOST,
) -> InstanceCost:
    """Find or make the profile, check that everything fits, and build the cost model.

    Args:
        model: catalogue name of the model.
        gpu: catalogue name of the GPU.
        tp: tensor-parallel degree.
        pp: pipeline stages.
        profile_name: `auto`, `roofline`, an engine, a name or a path (see `find_profile`).
        num_gpu_blocks: overrides the profile's KV blocks.
        block_size: overrides the profile's (> 0); the KV tokens stay the same.
        max_model_len: longest sequence in tokens; default the model's.
        gpu_memory_utilization: share of the memory the engine may fill (fallback formula only).
        min_step_s: seconds below which no step ends.
        host: host time on top of the profile's.

    Raises:
        BadInput: unknown name, impossible layout, no profile, or it does not fit.
    """
    shape, device = model_named(model), gpu_named(gpu)
    check_layout(shape, tp, pp)
    check_fits(shape, device, tp * pp, gpu_memory_utilization=gpu_memory_utilization)
    length = _max_model_len(shape, max_model_len)
    profile = _profile(model, gpu, tp, pp, profile_name)
    size = profile.block_size if block_size is None else block_size
    blocks = num_gpu_blocks
    if blocks is None and profile.pp == pp:
        blocks = _profile_blocks(profile, size)
    guessed = blocks is None
    if blocks is None:
        dtype = profile.dtype
        blocks = kv_blocks_by_formula(shape, device, tp, pp, dtype, size, gpu_memory_utilization)
    memory = room(shape, device, tp, pp, profile.dtype, blocks, size)
    return InstanceCost(
        cost=StepCost(profile, shape, min_step_s, host),
        profile=profile,
        num_gpu_blocks=blocks,
        kv_guessed=guessed,
        block_size=size,
        kv_block_bytes=memory.block_bytes,
        max_step_tokens=memory.max_step_tokens,
        max_model_len=length,
        flops_per_token=shape.flops_per_token,
        attention_flops_per_pair=shape.attention_flops_per_pair,
        peak_flops_per_s=device.peak_flops_per_s * tp * pp,
        notes=_notes(profile, pp),
    )


def _profile(model: str, gpu: str, tp: int, pp: int, name: str) -> Profile:
    """Return the profile of a layout; a pipeline without its own takes that of one stage.

    A step then lasts as long as on `tp` GPUs, spread over the stages; passing activations from
    stage to stage is not charged.
    """
    try:
        return find_profile(model, gpu, tp, pp, name)
    except BadInput:
        if pp == 1:
            raise
    return find_profile(model, gpu, tp, 1, name)


def _max_model_len(model: Model, asked: int | None) -> int:
    if asked is None:
        return model.max_length
    if not 0 < asked <= model.max_length:
        raise BadInput(f"max_model_len {asked}: {model.name} takes 1 to {model.max_length} tokens")
    return asked


def _profile_blocks(profile: Profile, block_size: int) -> int | None:
    if profile.num_gpu_blocks is None:
        return None
    return profile.num_gpu_blocks * profile.block_size // block_size


def _notes(profile: Profile, pp: int) -> tuple[str, ...]:
    notes = list(profile.notes)
    if profile.basis == "roofline":
        notes.append(f"step times of {profile.name} are peak figures, not measured")
    if profile.basis == "derived":
        notes.append(f"step times of {profile.name} are derived, not measured on this hardware")
    if profile.pp != pp:
        notes.append(
            f"pp {pp}: priced with {profile.name}, spread over the stages; the hand-over between "
            "stages is not charged"
        )
    return tuple(notes)
