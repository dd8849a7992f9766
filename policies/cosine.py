"""CoSine: drafters on cheap GPUs work together, one large model verifies."""

from __future__ import annotations

from typing import Final, Literal

from policies.base import (
    Config,
    Decode,
    Field,
    N,
    Plan,
    Policy,
    Prefill,
    Request,
    View,
    policy,
)
from policies.parts.drafter_routing import Cooperation

GO_ON: Final = Decode()


class CosineConfig(Config):
    """Parameters of CoSine; the paper's notes give no values, all are assumed."""

    max_num_seqs: int = Field(
        16, ge=1, description="requests verified in a round, at most (paper: 1 to 16)"
    )
    max_num_batched_tokens: int = Field(
        8192, ge=1, description="prompt tokens of a prefill; a longer prompt runs alone"
    )
    drafters_per_request: int = Field(
        2, ge=0, le=8, description="drafters that propose for a request; 0: as many as are idle"
    )
    widest: int = Field(4, ge=1, le=8, description="most of them, with drafters_per_request 0")
    routing: Literal["score", "fixed"] = Field(
        "score", description="drafters by past rounds, or the first ones for good"
    )
    explore_below: float = Field(
        2.0, ge=0, description="theta: after fewer tokens in a round an untried drafter has a go"
    )
    smoothing: float = Field(0.3, gt=0, le=1, description="weight of the last round in a score")
    adapt: Literal["ladder", "none"] = Field(
        "none",
        description="ladder: a token more drafted while the verifier waits for over 10 % of a "
        "round, one less while more than a round of drafts waits for it",
    )
    candidates: int = Field(
        4,
        ge=0,
        description="C_max: drafted tokens of a round, at most so many for each seat and drafter "
        "of a request; 0: no limit",
    )


@policy("cosine")
class Cosine(Policy):
    """Cooperative drafting in a pool, verification apart, as a pipeline.

    Idea: drafting is bound by memory bandwidth and suits cheap GPUs, verifying by arithmetic and
    suits dear ones. Small models that know different domains draft on nodes of their own; each
    request is drafted for by those that did well on it, and they share every token.

    Decision rule. Batch: everybody. The paper picks the set of requests with the best
    -(T_draft + T_verify)/|S| + w * sum of K; both times have a part that does not grow with |S|, so
    the best set is all that limits allow: `max_num_seqs`, memory, and `candidates` per seat and
    drafter, over which K is cut. Prompts come first, whole, first come first served. Drafters: the
    `drafters_per_request` best scores; after a round of fewer than `explore_below` tokens the next
    untried one and the best others. A score moves by `smoothing` towards the harmonic mean of the
    drafter's confidence and its agreement with what was accepted. K: what
    `speculative.control: table` says; with `adapt: ladder` 4 at first, then up or down by one a
    round; `speculative.control: goodput` overrides both.

    Needs `speculative: {method: drafter_pool}`, which says what the drafters are like; a round
    lasts max(T_draft, T_verify) + network there. Without it the policy decodes a token a step.

    Deviations and assumptions: all requests of a round draft the same K. How many drafters propose
    for a request is settled when it joins (with 0: drafters/batch, 1 to `widest`), where the paper
    counts up and down each round before it turns to K. The tree is as large as it can be. No
    latency bound on the batch. Reading the ladder's two signals as shares of the pipeline's two
    stages is ours; so read, it shortens K wherever verification is bound by memory, which is where
    drafting longer costs nothing, so it is off by default. Knows no output length.

    Complexity: O(admitted) per call; a round's drafters O(drafters) per request.

    Reference: Gao et al., "Collaborative Speculative Inference for Efficient LLM Inference
    Serving", 2025, arXiv:2503.10325.
    """

    Config = CosineConfig
    assumes = "a pool of drafters (speculative.method: drafter_pool)"

    def __init__(self, config: CosineConfig) -> None:
        self.max_num_seqs: N = config.max_num_seqs
        self.max_num_batched_tokens: N = config.max_num_batched_tokens
        self.drafters = Cooperation(
            config.drafters_per_request,
            config.widest,
            config.explore_below,
            config.smoothing,
            config.routing == "score",
            config.adapt == "ladder",
            config.candidates * config.max_num_seqs,
        )

    def plan(self, view: View) -> Plan | None:
        """Decide the next step."""
        if view.num_waiting:
            batch = self._batch(view)
            if batch:
                return Prefill(batch, False)
        return GO_ON if view.num_decoding else None

    def _batch(self, view: View) -> list[Request]:
        """Return waiting prompts while seats, tokens and blocks for a round of all remain."""
        seats = self.max_num_seqs - view.num_running
        budget = self.max_num_batched_tokens
        room = view.free_blocks - view.growth_blocks
        batch: list[Request] = []
        for request in view.waiting:
            budget -= request.target_tokens
            room -= view.blocks_to_decode(request.target_tokens)
            if seats <= 0 or (batch and budget < 0) or room < 0:
                break
            batch.append(request)
            seats -= 1
        if batch or view.num_running or seats <= 0:
            return batch
        # alone, a prompt that leaves no room for a round still runs
        return list(view.waiting)[:1]
