"""DistServe-like: prefill and decode on separate pools, first come first served."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base import (
    ClusterInfo,
    Config,
    Decode,
    Field,
    N,
    Plan,
    Policy,
    Pool,
    Preemption,
    Prefill,
    Request,
    View,
    policy,
)

GO_ON = Decode()


class DistserveConfig(Config):
    """Parameters of the DistServe-like policy."""

    max_num_batched_tokens: int = Field(
        4096, ge=1, description="prompt tokens of a prefill batch, unpadded (L_m rule: 512)"
    )
    max_prefill_seqs: int = Field(128, ge=1, description="requests in a prefill batch, at most")
    max_num_seqs: int = Field(256, ge=1, description="requests in a decode batch, at most")
    ready_threshold: float = Field(
        0.05, gt=0, le=1, description="pull while pulled prompts hold less of the decode blocks"
    )
    padded: bool = Field(True, description="pad prefill batches to their longest prompt")


@policy("distserve")
class Distserve(Policy):
    """Prefill/decode disaggregation, first come first served on both sides.

    Idea: prefill and decode disturb each other when they share a GPU, so each gets its own pool;
    the KV cache moves over a link when the decode side pulls it.

    Decision rule, prefill: take requests in order while the batch holds at most
    `max_num_batched_tokens` prompt tokens (counted unpadded), `max_prefill_seqs` requests and the
    blocks that are free; prompts that were prefilled hold their blocks until they are pulled, so
    prefill memory is the buffer. A prompt longer than the budget runs alone. Decode: pull the head
    of the bridge while pulled prompts hold less than `ready_threshold` of the blocks and it fits;
    swapped requests come back first, then pulled ones join in order. When the batch cannot grow,
    its last request is swapped out.

    Deviations and assumptions: padded prefill is our assumption for the engine of BucketServe's
    evaluation; the 3 ms idle poll of the code is not modelled. A swap space that is full falls
    back to recompute on the decode instance.

    Complexity: O(admitted) per call.

    Reference: Zhong et al., "DistServe", OSDI 2024, arXiv:2401.09670; code LLMServe/DistServe.
    """

    Config = DistserveConfig

    def __init__(self, config: DistserveConfig) -> None:
        self.max_num_batched_tokens: N = config.max_num_batched_tokens
        self.max_prefill_seqs: N = config.max_prefill_seqs
        self.max_num_seqs: N = config.max_num_seqs
        self.ready_threshold = config.ready_threshold
        self.padded = config.padded

    def pools(self, cluster: ClusterInfo) -> Sequence[Pool]:
        """Return one prefill and one decode instance on half of the GPUs each."""
        tp = max(cluster.gpus // 2, 1)
        return [Pool("prefill", 1, tp=tp), Pool("decode", 1, tp=tp)]

    def plan(self, view: View) -> Plan | None:
        """Decide the next step of a prefill or a decode instance."""
        if view.role == "decode":
            return self._plan_decode(view)
        batch = self._prefill_batch(view)
        return Prefill(batch, self.padded) if batch else None

    def can_accept(self, view: View, request: Request) -> bool:
        """Pull while little waits to join and the prompt fits."""
        if view.ready_blocks >= self.ready_threshold * view.total_blocks:
            return False
        return view.blocks_for(request.prefilled + 1) <= view.free_blocks - view.growth_blocks

    def victim(self, view: View) -> Preemption:
        """Swap out the last of the batch."""
        return Preemption(view.running[next(reversed(view.running))], swap=True)

    def _prefill_batch(self, view: View) -> list[Request]:
        room = view.free_blocks
        budget = self.max_num_batched_tokens
        size = view.block_size
        batch: list[Request] = []
        for request in view.waiting:
            budget -= request.target_tokens
            room -= -(-request.target_tokens // size)
            if room < 0 or (batch and budget < 0) or len(batch) == self.max_prefill_seqs:
                break
            batch.append(request)
        return batch

    def _plan_decode(self, view: View) -> Plan | None:
        seats = self.max_num_seqs - len(view.running)
        if seats > 0 and view.swapped:
            back = self._swap_in(view, seats)
            if back:
                return Decode(swap_in=back)
        elif seats > 0 and view.num_waiting:
            batch = self._prefill_batch(view)
            if batch:
                return Prefill(batch, self.padded)
        if seats > 0 and view.ready:
            behind = view.swapped or view.num_waiting
            if not behind or not view.num_decoding:
                return Decode(admit=list(view.ready.values())[:seats])
        return GO_ON if view.num_decoding else None

    def _swap_in(self, view: View, seats: N) -> list[Request]:
        room = view.free_blocks - view.growth_blocks
        back: list[Request] = []
        for request in view.swapped.values():
            room -= view.blocks_for(request.prefilled + 1)
            if room < 0 or len(back) == seats:
                break
            back.append(request)
        return back
