"""Orca: iteration-level batching, memory reserved for the longest possible request."""

from __future__ import annotations

from typing import Final

from policies.base import (
    Config,
    Decode,
    Field,
    Mixed,
    N,
    Plan,
    Policy,
    Request,
    View,
    policy,
)

GO_ON: Final = Decode()


class OrcaConfig(Config):
    """Parameters of Orca."""

    max_num_seqs: int = Field(512, ge=1, description="requests running at a time, at most")
    max_len: int = Field(
        2048, ge=1, description="tokens reserved per request: the model's prompt + output limit"
    )


@policy("orca")
class Orca(Policy):
    """Iteration-level batching with selective batching.

    Idea: the scheduler is asked after every step, not after every batch, so that a request leaves
    when it is done and a new one takes its place at once. Attention runs per request and everything
    else over all tokens together, so nothing is padded.

    Decision rule, each step: every running request takes a token, and waiting requests join first
    come first served, with their whole prompts in the same step, while there is a seat and a slot.
    The KV cache is cut into slots of `max_len` tokens; a request holds one from admission to its
    end, however short it is. So nothing is ever preempted, and there is no limit on the tokens of
    a step.

    Parameters: `max_len` is to be the model's limit (`engine.max_model_len`).

    Deviations and assumptions: a slot is whole blocks, and there is always at least one slot, so
    that a small cache runs one request at a time; requests whose prompt and output exceed `max_len`
    have not reserved enough: a prompt then has to fit the free blocks as well, and if the cache
    overflows the last admitted is recomputed. Records show blocks in use, not slots. The paper
    reserves each request's own maximum (`max_tokens`), its later readers the model's; pipeline
    stages are not modelled. The seat limit is that of the Splitwise simulator's Orca. Knows no
    output length.

    Complexity: O(admitted) per call.

    Reference: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative
    Models", OSDI 2022, https://www.usenix.org/conference/osdi22/presentation/yu.
    """

    Config = OrcaConfig
    assumes = "the longest possible request"

    def __init__(self, config: OrcaConfig) -> None:
        self.max_num_seqs: N = config.max_num_seqs
        self.max_len: N = config.max_len

    def plan(self, view: View) -> Plan | None:
        """Decide the next step."""
        if view.num_waiting:
            chunks = self._admit(view)
            if chunks:
                return Mixed(chunks, view.num_decoding > 0)
        return GO_ON if view.num_decoding else None

    def _admit(self, view: View) -> list[tuple[Request, N]]:
        """Return waiting requests, whole, while seats and slots remain."""
        slots = max(view.total_blocks // view.blocks_to_decode(self.max_len - 1), 1)
        seats = min(slots, self.max_num_seqs) - view.num_running
        if seats <= 0:
            return []
        room = view.free_blocks - view.growth_blocks
        size = view.block_size
        chunks: list[tuple[Request, N]] = []
        for request in view.waiting:
            length = request.target_tokens
            room -= -(-length // size)
            if room < 0:
                break
            chunks.append((request, length))
            if len(chunks) == seats:
                break
        return chunks
