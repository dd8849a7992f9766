"""Arithmetic of decode prices: chains of affine pieces over the cached tokens."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from sim.types import FOREVER, DecodePiece, N


def combined(first: DecodePiece, second: DecodePiece, times: N = 1) -> DecodePiece:
    """Return the chain of `first + times*second`."""
    return _chain(
        _piece(a.base_fs + times * b.base_fs, a.slope_fs + times * b.slope_fs, end, _outside(a, b))
        for a, b, _, end in _aligned(first, second)
    )


def slower(first: DecodePiece, second: DecodePiece, more_fs: int = 0) -> DecodePiece:
    """Return the chain of the larger of both, plus a constant."""
    found = []
    for a, b, start, end in _aligned(first, second):
        for least, to in _cut(a, b, start, end):
            top = max(a, b, key=lambda line: (line.at(least), line.slope_fs))
            found.append(_piece(top.base_fs + more_fs, top.slope_fs, to, _outside(a, b)))
    return _chain(found)


def scaled(piece: DecodePiece, numerator: N, denominator: N) -> DecodePiece:
    """Return the chain of a share of each coefficient, rounded down to femtoseconds."""
    found = []
    at: DecodePiece | None = piece
    while at is not None:
        base, slope = at.base_fs * numerator, at.slope_fs * numerator
        share = base // denominator, slope // denominator
        found.append(_piece(*share, at.kv_end, at.extrapolated))
        at = at.next
    return _chain(found)


def _piece(base_fs: int, slope_fs: int, end: N, extrapolated: bool) -> DecodePiece:
    made = DecodePiece(base_fs, slope_fs, end)
    made.extrapolated = extrapolated
    return made


def _outside(a: DecodePiece, b: DecodePiece) -> bool:
    return a.extrapolated or b.extrapolated


def _aligned(
    first: DecodePiece, second: DecodePiece
) -> Iterable[tuple[DecodePiece, DecodePiece, N, N]]:
    """Yield the pieces of both between their knots: (first's, second's, start, end)."""
    a, b, start = first, second, 0
    while True:
        end = min(a.kv_end, b.kv_end)
        yield a, b, start, end
        start = end
        ended_a, ended_b = a.kv_end == end, b.kv_end == end
        if (ended_a and a.next is None) or (ended_b and b.next is None):
            return
        a = a.next if ended_a and a.next is not None else a
        b = b.next if ended_b and b.next is not None else b


def _cut(a: DecodePiece, b: DecodePiece, start: N, end: N) -> list[tuple[N, N]]:
    """Split [start, end) where the larger of two lines changes."""
    gap, rise = b.base_fs - a.base_fs, a.slope_fs - b.slope_fs
    if not rise:
        return [(start, end)]
    crossing = -(-gap // rise)  # the first K on whose side the steeper line is not below
    if not start < crossing < end:
        return [(start, end)]
    return [(start, crossing), (crossing, end)]


def _chain(pieces: Iterable[DecodePiece]) -> DecodePiece:
    """Link pieces in their order; the last holds for ever."""
    found = list(pieces)
    found[-1].kv_end = FOREVER
    for piece, later in pairwise(found):
        piece.next = later
    return found[0]
