"""Splitwise: prompt and token machines, and a mixed pool that grows and shrinks between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

from policies.base import (
    Cluster,
    ClusterInfo,
    Config,
    Decode,
    Field,
    Mixed,
    N,
    Plan,
    Policy,
    Pool,
    Request,
    View,
    policy,
)
from policies.parts.pools import Pools

GO_ON: Final = Decode()


class SplitwiseConfig(Config):
    """Parameters of Splitwise."""

    max_pending_tokens: int = Field(
        8192, ge=1, description="pending tokens beyond which a prompt queue is long"
    )
    max_num_batched_tokens: int = Field(
        2048, ge=1, description="prompt tokens and decodes in one step, at most"
    )
    max_num_seqs: int = Field(512, ge=1, description="requests running on a machine, at most")
    return_home: Literal["no-foreign-work", "idle"] = Field(
        "no-foreign-work", description="when a lent machine goes back to its own pool"
    )
    watermark: float = Field(
        0.01, ge=0, lt=1, description="share of KV blocks kept free when a request comes in"
    )
    prompt_share: float = Field(
        0.5, gt=0, lt=1, description="share of the machines whose home is the prompt pool"
    )


@policy("splitwise")
class Splitwise(Policy):
    """Phase splitting with a mixed pool and token-based shortest queues.

    Idea: prompts are bound by arithmetic and decodes by memory, so each phase gets machines of its
    own (and of its own kind); KV caches move between them while the prompt is still being computed.
    A machine is lent to the other phase when that one is short of machines.

    Decision rule, at arrival: the prompt machine is the one with the fewest pending tokens (prompt
    tokens to prefill, one per request that decodes) in the prompt pool, else in the mixed pool; it
    is passed over when something waits there and its tokens would exceed `max_pending_tokens`. The
    token machine is the one with the least reserved memory in the token pool, else in the mixed
    pool; it is passed over when that memory would fill up. Without a prompt machine, the token
    machine with the fewest pending tokens is lent to the mixed pool and used, and the other way
    round; if that fails, one machine with the fewest pending tokens runs both phases. A lent
    machine goes home when it has no foreign work left (`return_home`).

    On a machine: transferred requests join the batch; waiting prompts run whole, in order, beside
    all decodes, as long as prompt tokens and decodes stay within `max_num_batched_tokens` (one
    prompt always may). The KV cache is pulled as soon as it fits. Neither may touch the watermark,
    unless the machine's memory is empty.

    Parameters beside these: the overlap of the transfer with the prompt is a property of the links
    (`pools.overlap`); the published simulator hides 90 %.

    Deviations and assumptions: memory is reserved for the predicted output (no predictor: one
    token), where the published simulator knows it. Decodes always take part in a step, where
    prompts there may push them out four times in a row. The KV cache grows by blocks; if it cannot,
    the last admitted request is recomputed on its machine; the watermark is there to make this
    rare (where memory is reserved in full, there is none). A hand-over that could close a circle of
    machines waiting for each other's memory is not made: both phases run on the prompt machine. A
    lent machine goes home as the paper has it; `idle` is the rule of the simulator. Ties go to the
    lowest instance. Machines that are down are passed over; a prompt whose token machine has failed
    is given another one, or stays. `prompt_share` is ours. Machines of role `mixed` are always in
    the mixed pool.

    Complexity: O(machines) per arrival, O(admitted) per plan.

    Reference: Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase Splitting",
    ISCA 2024, arXiv:2311.18677; code Mutinifni/splitwise-sim.
    """

    Config = SplitwiseConfig
    uses_predictions = True
    assumes = "prompt lengths, predicted output lengths"
    places_decode: ClassVar[bool] = True

    def __init__(self, config: SplitwiseConfig) -> None:
        self.max_pending_tokens: N = config.max_pending_tokens
        self.max_num_batched_tokens: N = config.max_num_batched_tokens
        self.max_num_seqs: N = config.max_num_seqs
        self.watermark = config.watermark
        self.idle_only = config.return_home == "idle"
        self.prompt_share = config.prompt_share
        self._cluster: Cluster | None = None
        self._pools: Pools | None = None

    def pools(self, cluster: ClusterInfo) -> Sequence[Pool]:
        """Return prompt and token machines as small as fit; one machine runs both phases."""
        tp = cluster.min_tp
        machines = cluster.gpus // tp
        if machines < 2:
            return [Pool("mixed", machines, tp=tp)]
        prompt = min(max(round(machines * self.prompt_share), 1), machines - 1)
        return [Pool("prefill", prompt, tp=tp), Pool("decode", machines - prompt, tp=tp)]

    # -- where ------------------------------------------------------------------------------

    def route(self, request: Request, cluster: Cluster) -> N:
        """Return the prompt machine at arrival, and the token machine picked then after it."""
        pools = self._pools_of(cluster)
        if not request.prefilled:
            return pools.place(request).prompt.view.id
        view = pools.prefilled(request) or request.home
        assert view is not None
        return view.id

    def on_leave(self, request: Request) -> None:
        """Strike a request off the books."""
        if self._pools is not None:
            self._pools.left(request)

    def can_accept(self, view: View, request: Request) -> bool:
        """Pull as soon as the KV cache and a token fit."""
        return view.blocks_to_decode(request.prefilled) <= self._room(view)

    def _room(self, view: View) -> N:
        """Return the blocks that what comes in may take."""
        room = view.free_blocks - view.growth_blocks
        if view.free_blocks < view.total_blocks:
            room -= int(self.watermark * view.total_blocks)
        return room

    def _pools_of(self, cluster: Cluster) -> Pools:
        """Return the books of this run; another cluster is another run."""
        if self._pools is None or self._cluster is not cluster:
            self._cluster = cluster
            self._pools = Pools(cluster.instances, self.max_pending_tokens, self.idle_only)
        return self._pools

    # -- what -------------------------------------------------------------------------------

    def plan(self, view: View) -> Plan | None:
        """Decide the next step of a machine, whatever its pool."""
        decoding = view.num_decoding
        if view.ready or view.num_waiting:
            seats = self.max_num_seqs - len(view.running)
            if seats > 0 and view.ready:
                return Decode(admit=list(view.ready.values())[:seats])
            if seats > 0:
                chunks = self._prompts(view, seats)
                if chunks:
                    return Mixed(chunks, decoding > 0)
        return GO_ON if decoding else None

    def _prompts(self, view: View, seats: N) -> list[tuple[Request, N]]:
        """Return waiting prompts, whole, while seats, tokens and blocks remain."""
        budget = self.max_num_batched_tokens - view.decode_tokens
        room = self._room(view)
        size = view.block_size
        for head in view.bridge.values():  # the next to be pulled goes first
            room -= view.blocks_to_decode(head.prefilled)
            break
        chunks: list[tuple[Request, N]] = []
        for request in view.waiting:
            length = request.target_tokens
            room -= -(-length // size)
            budget -= length
            if room < 0 or (chunks and budget < 0):
                break
            chunks.append((request, length))
            if len(chunks) == seats:
                break
        return chunks
