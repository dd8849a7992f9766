"""Cost models for tests: several pieces a batch, everything doubled."""

from __future__ import annotations

from itertools import pairwise

from sim.types import FOREVER, CostModel, DecodePiece, N


class KnottedCost(CostModel):
    """A floor, a line and a steeper line, all with coefficients that depend on the batch.

    The knots lie where the tests' batches pass them in mid-span, at KV totals that are no multiple
    of the batch; the pieces do not meet at the last knot, so one step too many or too few shows.

    Args:
        unit_fs: all coefficients are multiples of it, or of `unit_fs // 8`.
        knots: KV totals at which the second and third pieces begin.
    """

    def __init__(self, unit_fs: int, knots: tuple[N, N] = (37, 150)) -> None:
        self.unit_fs = unit_fs
        self.knots = knots
        self._pieces: dict[N, DecodePiece] = {}

    def decode(self, batch: N) -> DecodePiece:
        """Return the first of three pieces."""
        if batch not in self._pieces:
            self._pieces[batch] = self._build(batch)
        return self._pieces[batch]

    def verify(self, batch: N, drafts: N) -> DecodePiece:
        """Return the pieces of a batch with a third of the drafted rows more."""
        return self.decode(batch + batch * drafts // 3)

    def verify_step(
        self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, drafts: N
    ) -> int:
        """Price a step with a third of the drafted rows more."""
        return self.step(chunks, new, context, quad, batch + batch * drafts // 3, kv)

    def _build(self, batch: N) -> DecodePiece:
        unit, part = self.unit_fs, self.unit_fs // 8
        first, second = self.knots
        second += 5 * batch
        heights = [unit * (1 + batch // 3), unit * (1 + batch // 3), unit * (2 + batch % 3)]
        pieces = [
            DecodePiece(heights[0] + part * first, 0, first),
            DecodePiece(heights[1], part, second),
            DecodePiece(heights[2], part * (2 + batch % 2), FOREVER),
        ]
        pieces[2].extrapolated = True
        for piece, later in pairwise(pieces):
            piece.next = later
        return pieces[0]

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step with chunks; each count matters, and so does what decodes beside them."""
        part = self.unit_fs // 8
        total = self.unit_fs + part * (chunks + new + context // 4 + quad // 64)
        return total + (self._at(batch, kv) // 2 if batch else 0)

    def _at(self, batch: N, kv: N) -> int:
        piece = self.decode(batch)
        while piece.next is not None and kv >= piece.kv_end:
            piece = piece.next
        return piece.base_fs + piece.slope_fs * kv

    def extrapolates(self, new: N, batch: N) -> bool:
        """Beyond 100 tokens."""
        return new + batch > 100


class ScaledCost(CostModel):
    """Another model with every price multiplied by an integer."""

    def __init__(self, inner: CostModel, factor: int) -> None:
        self.inner = inner
        self.factor = factor
        self._pieces: dict[tuple[N, N], DecodePiece] = {}

    def decode(self, batch: N) -> DecodePiece:
        """Return the scaled pieces."""
        return self.verify(batch, 0)

    def verify(self, batch: N, drafts: N) -> DecodePiece:
        """Return the scaled pieces."""
        key = (batch, drafts)
        if key not in self._pieces:
            self._pieces[key] = self._scaled(self.inner.verify(batch, drafts))
        return self._pieces[key]

    def _scaled(self, piece: DecodePiece) -> DecodePiece:
        copy = DecodePiece(piece.base_fs * self.factor, piece.slope_fs * self.factor, piece.kv_end)
        copy.extrapolated = piece.extrapolated
        if piece.next is not None:
            copy.next = self._scaled(piece.next)
        return copy

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Return the scaled price."""
        return self.inner.step(chunks, new, context, quad, batch, kv) * self.factor

    def verify_step(
        self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, drafts: N
    ) -> int:
        """Return the scaled price."""
        held = chunks, new, context, quad, batch, kv
        return self.inner.verify_step(*held, drafts) * self.factor

    def extrapolates(self, new: N, batch: N) -> bool:
        """As the other model."""
        return self.inner.extrapolates(new, batch)


def decode_price(cost: CostModel, batch: N, kv: N) -> int:
    """Return the price of one decode step, in femtoseconds."""
    piece = cost.decode(batch)
    while piece.next is not None and kv >= piece.kv_end:
        piece = piece.next
    return piece.base_fs + piece.slope_fs * kv
