"""Attention that takes longer, or less, than reading every cached token once with all of the GPU.

A cost model knows sums: its attention is shared evenly among the GPU's thread blocks (CTAs), and
each request reads its whole context. `BatchCost` stands before it and knows the batch:

* `WholeRows` (`engine.attention: ragged`): nobody splits a row, so a CTA with a long one is waited
  for;
* `SharedPrefixes` (`engine.cascade_attention`): KV blocks that several requests of the batch share
  are read once.

While a batch stays the same every row grows by a token a step, so prices stay affine: in a span the
longest row stays the longest, and what is shared stays shared. The highest of a few lines is the
price, and a span ends where another line takes over.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Final

from sim.types import FOREVER, CostModel, DecodePiece, DecodeTerms, N, Request

if TYPE_CHECKING:
    from sim.core.blocks import BlockPool
    from sim.core.instance import Instance

QUERY_TILES: Final = (16, 32, 64, 128)
"""Query rows a CTA takes at once, the heads of a group together: FlashInfer's tile sizes."""


class Ctas:
    """What whole rows of attention are dealt out to.

    Args:
        count: thread blocks that run at once on a GPU: SMs times those resident on one.
        kv_heads: KV heads of a GPU; each is a row of its own.
        group: query heads that share a KV head.
    """

    __slots__ = ("count", "group", "kv_heads")

    def __init__(self, count: N, kv_heads: N, group: N = 1) -> None:
        self.count = count
        self.kv_heads = kv_heads
        self.group = group


class BatchCost(CostModel):
    """Prices the steps of one instance by its batch, on top of a cost model.

    `decode` and `step` hold for the batch and the chunks that the instance has at the moment.
    """

    def __init__(self, cost: CostModel, instance: Instance) -> None:
        self.cost = cost
        self.instance = instance
        self.saved_tokens: N = 0
        """Cached tokens of the batch that are read together with equal ones of others."""
        self.piece = DecodePiece(0, 0)
        self.rest = DecodePiece(0, 0)
        """Stands for what comes after `piece`."""
        self._terms: dict[N, DecodeTerms] = {}

    def join(self, request: Request) -> None:
        """A request has joined the decoding batch."""
        raise NotImplementedError

    def quit(self, request: Request) -> None:
        """A request is about to leave the decoding batch."""
        raise NotImplementedError

    def decode(self, batch: N) -> DecodePiece:
        """Return the piece on which the batch's next step lies; good until the batch changes."""
        return self.at(batch, self.instance.kv_tokens, self.instance.steps)

    def at(self, batch: N, kv: N, steps: N) -> DecodePiece:
        """Return the piece of a batch that holds `kv` tokens after `steps` steps."""
        known = self.cost.decode(batch)
        while known.next is not None and kv >= known.kv_end:
            known = known.next
        lines = self.lines(batch, kv, steps)
        first_fs, slope_fs = max(lines)
        left: N = FOREVER
        for fs, slope in lines:
            if slope > slope_fs:
                left = min(left, (first_fs - fs) // ((slope - slope_fs) * batch) + 1)
        end = FOREVER if known.next is None else known.kv_end
        if left < FOREVER:
            end = min(end, kv + batch * left)
        piece = self.piece
        piece.base_fs = first_fs - slope_fs * kv
        piece.slope_fs = slope_fs
        piece.kv_end = end
        piece.next = self.rest if end < FOREVER else None
        piece.extrapolated = known.extrapolated
        return piece

    def lines(self, batch: N, kv: N, steps: N) -> list[tuple[int, int]]:
        """Return what the next step takes by each bound, and by how much a token more adds to it.

        In femtoseconds; the highest counts. A step adds `batch` tokens.
        """
        terms = self.terms(batch)
        token_fs = terms.attention_fs + terms.other_fs
        evenly = terms.fixed_fs + token_fs * kv - terms.attention_fs * self.saved_tokens
        return [(terms.floor_fs, 0), (evenly, token_fs)]

    def terms(self, batch: N) -> DecodeTerms:
        """Return the terms of a batch (memoised)."""
        terms = self._terms.get(batch)
        if terms is None:
            terms = self._terms[batch] = self.cost.decode_terms(batch)
        return terms

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step with the instance's chunks, in femtoseconds (`CostModel.step`)."""
        return self.mixed(chunks, new, context, quad, batch, kv, kv - self.saved_tokens)

    def mixed(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, read: N) -> int:
        """Price a step in which the decodes' attention lasts as long as for `read` tokens."""
        if not batch or read == kv:
            return self.cost.step(chunks, new, context, quad, batch, kv)
        price = self.cost.step(chunks, new, context, quad, batch, read)
        terms = self.terms(batch)
        if price <= terms.floor_fs:
            return price
        return max(terms.floor_fs, price + terms.other_fs * (kv - read))

    def extrapolates(self, new: N, batch: N) -> bool:
        """Whether a step with `new` chunk tokens and `batch` decodes leaves the fitted range."""
        return self.cost.extrapolates(new, batch)


class WholeRows(BatchCost):
    """A CTA computes whole rows; the attention lasts as long as the busiest CTA.

    A row is a KV head of a decode, or a KV head and query tile of a prompt's chunk; it takes a CTA
    as long as it has cached tokens. With rows in falling order, L(0) >= L(1) >= ..., on m CTAs

        makespan = max( sum(L) / m,  max over j of ceil((j + 1)/m) * L(j) )

    as some CTA has at least ceil((j + 1)/m) of the j + 1 longest rows. That is exact where the
    rows fit the CTAs at once and where they are equally long. Otherwise it is a lower bound of what
    any order of whole rows reaches: where each CTA has a few rows, longest first to the least
    loaded CTA comes to some 10 % more, the order of the batch to 40 % (docs/engine-modes.md).

    Source: FlashInfer (arXiv 2501.01005), its plan without the splitting. Deviations: the bound in
    place of a greedy assignment, which changes from step to step and has no closed form; a CTA
    computes at the same speed however many are idle, which overstates small batches.

    The term that grows with the context (`DecodeTerms.attention_fs`; in a step with chunks what
    `context`, `quad` and `kv` multiply) is multiplied by makespan * m / sum(L). The fitted price is
    taken to be that of evenly shared work. In a fixed batch the order of the rows never changes,
    and each line of the maximum is affine: O(waves) a span, O(log B) comparisons a request.
    """

    def __init__(self, cost: CostModel, instance: Instance, ctas: Ctas) -> None:
        super().__init__(cost, instance)
        self.ctas = ctas
        self.offsets: list[N] = []
        """Cached tokens of each request of the batch less the steps so far, shortest first."""
        self.waves: dict[N, list[tuple[N, int]]] = {}
        """Batch -> the row that begins a wave, from the longest, and what one of its tokens adds
        to a step up to that wave's end, in femtoseconds over the batch."""

    def join(self, request: Request) -> None:
        """Add a row to the batch."""
        if self.instance.num_decoding == 1:  # after a failure the old ones are still here
            self.offsets.clear()
        insort(self.offsets, request.kv_offset)

    def quit(self, request: Request) -> None:
        """Take a row out of the batch."""
        self.remove(request.kv_offset)

    def remove(self, offset: N) -> None:
        """Take out a row of that offset."""
        del self.offsets[bisect_left(self.offsets, offset)]

    def lines(self, batch: N, kv: N, steps: N) -> list[tuple[int, int]]:
        """Return the bounds: evenly shared, and a line for each wave."""
        lines = super().lines(batch, kv, steps)
        terms = self.terms(batch)
        other = terms.fixed_fs + terms.other_fs * kv
        longest = len(self.offsets) - 1
        for row, token_fs in self._waves(batch):
            tokens = self.offsets[longest - row] + steps
            lines.append((other + token_fs * batch * tokens, token_fs + terms.other_fs))
        return lines

    def _waves(self, batch: N) -> list[tuple[N, int]]:
        waves = self.waves.get(batch)
        if waves is None:
            count, heads = self.ctas.count, self.ctas.kv_heads
            attention_fs = self.terms(batch).attention_fs
            waves = self.waves[batch] = [
                (wave * count // heads, round(attention_fs * count * (wave + 1) / (heads * batch)))
                for wave in range(-(-batch * heads // count))
            ]
        return waves

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step with the instance's chunks, padded ones as rows of the longest."""
        if new == self.instance.prefill_tokens:
            rows = [(r.prefilled + tokens, tokens) for r, tokens in self.instance.chunks]
        else:
            rows = [(context // chunks, new // chunks)] * chunks
        read = kv
        if batch:
            count, heads = self.ctas.count, self.ctas.kv_heads
            longest, steps = len(self.offsets) - 1, self.instance.steps
            for wave in range(-(-batch * heads // count)):
                tokens = self.offsets[longest - wave * count // heads] + steps
                read = max(read, (wave + 1) * tokens * count // heads)
        return self.prompts(rows, new, context, quad, batch, kv, read)

    def prompts(
        self, rows: list[tuple[N, N]], new: N, context: N, quad: N, batch: N, kv: N, read: N
    ) -> int:
        """Price a step whose chunks end at `rows[i][0]` tokens, `rows[i][1]` of them new."""
        group, count, heads = self.ctas.group, self.ctas.count, self.ctas.kv_heads
        mean = -(-new * group // len(rows))
        size = QUERY_TILES[min(bisect_left(QUERY_TILES, mean), len(QUERY_TILES) - 1)]
        tiles: N = 0
        busiest: N = 0
        total: N = 0
        for end, tokens in sorted(rows, reverse=True):
            mine = -(-tokens * group // size)
            tiles += mine
            total += mine * end
            busiest = max(busiest, -(-tiles * heads // count) * end)
        busiest *= count
        total *= heads
        if busiest > total:
            context = context * busiest // total
            quad = quad * busiest // total
        return self.mixed(len(rows), new, context, quad, batch, kv, read)


class SharedPrefixes(BatchCost):
    """Requests of the batch that hold the same KV blocks read them together, once.

    Blocks are the same where the pool gave the same (`sim.core.blocks`): copies swapped or moved in
    are not. One block is enough. Prompts read their own prefix.
    """

    def __init__(self, cost: CostModel, instance: Instance, pool: BlockPool) -> None:
        super().__init__(cost, instance)
        self.pool = pool

    def join(self, request: Request) -> None:
        """Count what a request reads together with others of the batch."""
        if self.instance.num_decoding == 1:  # after a failure others still count
            self.saved_tokens = 0
        if request.known_blocks:
            blocks: N = 0
            for piece in self.pool.held_by(request):
                if piece.readers:
                    blocks += piece.hi - piece.lo
                piece.readers += 1
            self.saved_tokens += blocks * self.pool.size

    def quit(self, request: Request) -> None:
        """Take back what a request read together with others."""
        if request.known_blocks:
            blocks: N = 0
            for piece in self.pool.held_by(request):
                piece.readers -= 1
                if piece.readers:
                    blocks += piece.hi - piece.lo
            self.saved_tokens -= blocks * self.pool.size


def price_by_batch(instance: Instance) -> None:
    """Let an instance price its steps by its batch, if its engine asks for that.

    Raises:
        BadInput: its cost model does not know its terms.
    """
    made: BatchCost
    spec = instance.spec
    if spec.ctas is not None:
        made = WholeRows(instance.cost, instance, spec.ctas)
    elif spec.cascade_attention and instance.pool is not None:
        made = SharedPrefixes(instance.cost, instance, instance.pool)
    else:
        return
    made.terms(1)
    instance.batch_cost = made


def whole_rows(instance: Instance, lens: list[N]) -> WholeRows | None:
    """Return the prices of a static batch of prompts that long; None: those of the instance."""
    if instance.spec.ctas is None:
        return None
    rows = WholeRows(instance.cost, instance, instance.spec.ctas)
    rows.offsets = sorted(lens)
    return rows
