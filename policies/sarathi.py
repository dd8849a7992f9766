"""Sarathi-Serve: chunked prefills beside all decodes, under one token budget."""

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


class SarathiConfig(Config):
    """Parameters of Sarathi-Serve; names as in vLLM where the meaning is the same."""

    max_num_batched_tokens: int = Field(
        512,
        ge=1,
        description="token budget tau of one step (paper: 512 strict, 2048 relaxed SLO); "
        "keep it a multiple of 128",
    )
    max_num_seqs: int = Field(128, ge=1, description="requests running at a time, at most")
    watermark: float = Field(
        0.01, ge=0, lt=1, description="share of KV blocks kept free at admission"
    )


@policy("sarathi")
class Sarathi(Policy):
    """Chunked prefill with stall-free batches.

    Idea: a decode step leaves the GPU's arithmetic idle, a whole prompt stalls all decodes. Prompts
    cut into chunks fill the steps up to a token budget whose step still meets the bound on the time
    between tokens, so no decode ever waits for a prompt.

    Decision rule, each step: one token for every decoding request, always; then, in admission
    order, the next chunk of every unfinished prompt while budget is left; then waiting requests
    first come first served, the last one cut to what is left of the budget. A request is admitted
    if its whole prompt fits beside what the unfinished prompts will still take and the watermark
    stays free. When the KV cache cannot grow, the last admitted request is preempted and recomputed
    from the head of the queue; a step that preempts admits nobody.

    Parameters: `max_num_batched_tokens` is tau, to be set to the largest budget whose step meets
    the bound (P99 between tokens: 5 times, strict, or 25 times, relaxed, a step of decodes only).
    Keep it a multiple of 128: matrix tiles make 257 tokens cost 32 % more than 256.

    Differences from `continuous` with `v1`, which took chunked prefill from here: admission wants
    room for the whole prompt and leaves the watermark free (there: room for the first chunk, no
    watermark); the budget may be below the cap on requests, and then bounds the batch as well
    (there: refused); tau is 512 and the cap 128 (there: 2048 and 256); one prompt may take the
    whole step. The order (decodes, unfinished prompts, new requests) is the same.

    Deviations and assumptions: blocks of an admitted prompt are counted as taken but taken chunk by
    chunk, so decodes may grow into them and an eviction comes later than in an engine that takes
    them at once; the watermark is waived for the first prompt while nothing runs, where the engine
    would refuse it for good; `max_num_seqs` 128 and the watermark are the defaults of the authors'
    simulator (Vidur); pipeline stages, which share the cap there, are not modelled. Knows no output
    length.

    Complexity: O(admitted + unfinished prompts) per call.

    Reference: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with
    Sarathi-Serve", OSDI 2024, arXiv:2403.02310.
    """

    Config = SarathiConfig
    assumes = "nothing; a budget chosen for the TBT bound"

    def __init__(self, config: SarathiConfig) -> None:
        self.max_num_batched_tokens = self.step_tokens = config.max_num_batched_tokens
        self.max_num_seqs: N = config.max_num_seqs
        self.watermark = config.watermark

    def plan(self, view: View) -> Plan | None:
        """Decide the next step."""
        if not (view.num_waiting or view.prefilling):
            return GO_ON
        decoding = view.num_decoding
        budget = self.max_num_batched_tokens - view.decode_tokens
        chunks: list[tuple[Request, N]] = []
        room = view.free_blocks - view.growth_blocks
        for request in view.prefilling.values():
            room -= view.blocks_for(request.target_tokens) - request.blocks
            tokens = min(request.target_tokens - request.prefilled, budget)
            if tokens > 0:
                chunks.append((request, tokens))
                budget -= tokens
        if room >= 0 and budget > 0 and view.num_waiting:
            self._admit(view, chunks, budget, room)
        if chunks:
            return Mixed(chunks, decoding > 0)
        return GO_ON if decoding else None

    def _admit(self, view: View, chunks: list[tuple[Request, N]], budget: N, room: N) -> None:
        """Append chunks of waiting requests while seats, budget and blocks remain."""
        seats = self.max_num_seqs - view.num_running
        kept_free = int(self.watermark * view.total_blocks)
        size = view.block_size
        cache = view.prefix_cache
        look = None
        for request in view.waiting:
            length = request.target_tokens
            if cache is not None and look is None and (request.prefix or request.preemptions):
                look = cache.prospect(view.growth_blocks, chunks)
            if look is not None:
                length -= look.cached(request)
            room -= -(-length // size) if look is None else look.admit(request, length)
            if seats <= 0 or budget <= 0 or room < 0:
                return
            if room < kept_free and (view.running or chunks):
                return
            chunks.append((request, min(length, budget)))
            budget -= length
            seats -= 1
