"""DistServe-like: prefill and decode on separate pools, first come first served."""

from __future__ import annotations

from policies.base import (
    Config,
    Field,
    N,
    Plan,
    Request,
    View,
    policy,
)
from policies.parts.disaggregated import Disaggregated, fcfs_batch


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
class Distserve(Disaggregated):
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
    assumes = "prompt lengths"

    def __init__(self, config: DistserveConfig) -> None:
        super().__init__(config.max_num_seqs, config.ready_threshold, config.padded)
        self.max_num_batched_tokens: N = config.max_num_batched_tokens
        self.max_prefill_seqs: N = config.max_prefill_seqs

    def plan(self, view: View) -> Plan | None:
        """Decide the next step of a prefill or a decode instance."""
        batch: list[Request] = []
        if view.num_waiting and not view.swapped:
            batch = fcfs_batch(view, self.max_num_batched_tokens, self.max_prefill_seqs)
        return self.next_step(view, batch)
