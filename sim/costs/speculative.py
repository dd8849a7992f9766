"""Speculative decoding: what drafting adds to the step that verifies (`spec/neighbours.md` 5).

    round = host + verify(B, K) + draft(B, K)                 the drafter shares the GPUs
    round = max(host + verify(B, K), draft(B, K)) + network   it has GPUs of its own, overlapped
    round = host + verify(B, K) + draft(B, K) + network       ... and one waits for the other

Every price stays affine between knots of the cached tokens, so a span of rounds is closed-form.
"""

from __future__ import annotations

import abc

from mypy_extensions import mypyc_attr

from sim.costs.pieces import combined, scaled, slower
from sim.types import BadInput, CostModel, DecodePiece, DrafterRules, N, to_fs

NGRAM_SHARE = (6, 1000)
"""Prompt lookup takes 0.6 % of the verification (SpecDecode-Bench's simulator, 2601.11580)."""

HEAD_STEP_SHARE = 0.12
"""A drafted position of a head (EAGLE-1, EAGLE-3) in plain steps at batch 1: 10-14 %, fitted to
vLLM's times per token on an H100 with Llama-3.1-8B (vLLM #20780)."""

HEAD_ROW_SHARE = 0.04
HEAD_KV_SHARE = 0.06
"""What a row and a cached token add to drafting, in what they add to the verification:
0.84/21.01 us and 2.38/39.26 ns (SpecDecode-Bench's fit, Llama-3.1-8B on an H100)."""

ROWS_SAMPLED = 64
"""Batch up to which a target's time per row is averaged for a head's defaults."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Drafter(abc.ABC):
    """How long it takes to draft."""

    @abc.abstractmethod
    def draft(self, batch: N, drafts: N, verify: DecodePiece) -> DecodePiece:
        """Return the price of `drafts` >= 1 tokens for each request of a batch.

        Args:
            batch: requests.
            drafts: tokens drafted for each.
            verify: price of the step that verifies them.
        """

    def nodes(self, batch: N, drafts: N) -> N:
        """Return how many drafted tokens the target verifies for a request: of a chain, all."""
        return drafts

    def prefill(self, chunks: N, new: N, context: N, quad: N) -> int:
        """Return what the drafter's own pass over prompt chunks takes, in femtoseconds."""
        return 0


class DraftModel(Drafter):
    """A smaller model: K decode steps of its own one after the other, and its own prefill.

    All K steps are priced at the cached tokens of the round's start: what the drafted tokens
    themselves add to them is left out.

    Args:
        cost: prices the draft model's steps.
        step_overhead_s: seconds added to each of its steps (launches, sampling, hand-over).
    """

    def __init__(self, cost: CostModel, step_overhead_s: float = 0.0) -> None:
        self.cost = cost
        self.overhead_fs = to_fs(step_overhead_s)

    def draft(self, batch: N, drafts: N, verify: DecodePiece) -> DecodePiece:
        """Return K steps of the batch."""
        overhead = DecodePiece(drafts * self.overhead_fs, 0)
        return combined(overhead, self.cost.decode(batch), drafts)

    def prefill(self, chunks: N, new: N, context: N, quad: N) -> int:
        """Return a step with the same chunks."""
        return self.cost.step(chunks, new, context, quad, 0, 0) + self.overhead_fs


class DraftHead(Drafter):
    """A head on the target (EAGLE, Medusa): K small steps of `step + row*B + kv*KV` each.

    Its pass over a prompt is not charged: one layer of dozens.

    Args:
        step_s: seconds of a step whatever it holds.
        row_s: seconds per request.
        kv_token_s: seconds per cached token of the batch.
    """

    def __init__(self, step_s: float, row_s: float, kv_token_s: float) -> None:
        self.step_fs = to_fs(step_s)
        self.row_fs = to_fs(row_s)
        self.kv_token_fs = to_fs(kv_token_s)

    @classmethod
    def of(cls, target: CostModel) -> DraftHead:
        """Return a head of a target without measurements: shares of the target's own step."""
        alone, many = target.decode(1), target.decode(ROWS_SAMPLED)
        head = cls(0.0, 0.0, 0.0)
        head.step_fs = round(HEAD_STEP_SHARE * alone.base_fs)
        row_fs = (many.base_fs - alone.base_fs) / (ROWS_SAMPLED - 1)
        head.row_fs = max(0, round(HEAD_ROW_SHARE * row_fs))
        head.kv_token_fs = round(HEAD_KV_SHARE * many.slope_fs)
        return head

    def draft(self, batch: N, drafts: N, verify: DecodePiece) -> DecodePiece:
        """Return K small steps."""
        base_fs = self.step_fs + self.row_fs * batch
        return DecodePiece(drafts * base_fs, drafts * self.kv_token_fs)


class NgramLookup(Drafter):
    """Prompt lookup: a share of the verification, whatever K."""

    def draft(self, batch: N, drafts: N, verify: DecodePiece) -> DecodePiece:
        """Return the share."""
        return scaled(verify, *NGRAM_SHARE)


class PooledDrafters(Drafter):
    """A pool of small models, each on a GPU of its own, that share every drafted token (CoSine).

    K times a step of a drafter with the requests it drafts for, and a hop to the others. What the
    drafters of a request propose makes a tree of at most `width * K` tokens, all verified.

    Args:
        drafters: how many.
        rules: how many of them propose for a request.
        step_s: seconds of a drafter's step whatever it holds.
        request_s: seconds for each request it drafts for.
        hop_s: seconds to share a drafted token.
    """

    def __init__(
        self,
        drafters: N,
        rules: DrafterRules,
        step_s: float,
        request_s: float,
        hop_s: float,
    ) -> None:
        self.drafters = drafters
        self.rules = rules
        self.fixed_fs = to_fs(step_s) + to_fs(hop_s)
        self.request_fs = to_fs(request_s)

    def draft(self, batch: N, drafts: N, verify: DecodePiece) -> DecodePiece:
        """Return K shared steps; requests are spread evenly over the drafters."""
        each = -(-batch * self.rules.width(batch, self.drafters) // self.drafters)
        return DecodePiece(drafts * (self.fixed_fs + self.request_fs * each), 0)

    def nodes(self, batch: N, drafts: N) -> N:
        """Return the largest tree."""
        return drafts * self.rules.width(batch, self.drafters)


class SpeculativeCost(CostModel):
    """A target's prices, with what the drafter adds to a round and to a prompt.

    Args:
        target: prices the target's steps.
        drafter: prices the drafts.
        apart: the drafter has GPUs of its own.
        network_s: seconds a round's tokens travel, there and back (`apart`).
        overlap: drafting and verifying go on at once, so a round takes the longer (`apart`).
        draft_at_zero: share of a decode step that the drafter takes in rounds without drafts.
    """

    def __init__(
        self,
        target: CostModel,
        drafter: Drafter,
        apart: bool = False,
        network_s: float = 0.0,
        draft_at_zero: float = 0.0,
        overlap: bool = True,
    ) -> None:
        if not 0 <= draft_at_zero <= 1:
            raise BadInput(f"draft_at_zero {draft_at_zero}: expected a share from 0 to 1")
        self.target = target
        self.drafter = drafter
        self.apart = apart
        self.overlap = apart and overlap
        self.network_fs = to_fs(network_s) if apart else 0
        self._idle_ppm = round(draft_at_zero * 1e6)
        self._plain: dict[N, DecodePiece] = {}
        self._drafts: dict[tuple[N, N], DecodePiece] = {}
        self._rounds: dict[tuple[N, N], DecodePiece] = {}

    def decode(self, batch: N) -> DecodePiece:
        """Return the target's first piece, made longer by an idle drafter (memoised)."""
        if not self._idle_ppm:
            return self.target.decode(batch)
        piece = self._plain.get(batch)
        if piece is None:
            plain = self.target.decode(batch)
            piece = combined(plain, scaled(plain, self._idle_ppm, 1_000_000))
            self._plain[batch] = piece
        return piece

    def verify(self, batch: N, drafts: N) -> DecodePiece:
        """Return the first piece of a round of drafting and verifying (memoised)."""
        if not drafts:
            return self.decode(batch)
        piece = self._rounds.get((batch, drafts))
        if piece is None:
            verify, draft = self._verify(batch, drafts), self._draft(batch, drafts)
            if self.overlap:
                piece = slower(verify, draft, self.network_fs)
            else:
                piece = combined(combined(verify, draft), DecodePiece(self.network_fs, 0))
            self._rounds[batch, drafts] = piece
        return piece

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step with chunks; the drafter prefills them too."""
        total = self.target.step(chunks, new, context, quad, batch, kv)
        if batch and self._idle_ppm:
            total += self.decode(batch).at(kv) - self.target.decode(batch).at(kv)
        if chunks and not self.apart:
            total += self.drafter.prefill(chunks, new, context, quad)
        return total

    def verify_step(
        self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, drafts: N
    ) -> int:
        """Price a round beside prompt chunks; the drafter prefills them too."""
        if not drafts or not batch:
            return self.step(chunks, new, context, quad, batch, kv)
        nodes = self.drafter.nodes(batch, drafts)
        verify = self.target.verify_step(chunks, new, context, quad, batch, kv, nodes)
        draft = self._draft(batch, drafts).at(kv)
        if chunks:
            draft += self.drafter.prefill(chunks, new, context, quad)
        if self.overlap:
            return max(verify, draft) + self.network_fs
        return verify + draft + self.network_fs

    def phases(self, batch: N, drafts: N, kv: N) -> tuple[int, int]:
        """Return what verifying and what drafting takes of a round, in femtoseconds."""
        return self._verify(batch, drafts).at(kv), self._draft(batch, drafts).at(kv)

    def extrapolates(self, new: N, batch: N) -> bool:
        """As the target."""
        return self.target.extrapolates(new, batch)

    def _verify(self, batch: N, drafts: N) -> DecodePiece:
        return self.target.verify(batch, self.drafter.nodes(batch, drafts))

    def _draft(self, batch: N, drafts: N) -> DecodePiece:
        piece = self._drafts.get((batch, drafts))
        if piece is None:
            verify = self._verify(batch, drafts)
            piece = self._drafts[batch, drafts] = self.drafter.draft(batch, drafts, verify)
        return piece
