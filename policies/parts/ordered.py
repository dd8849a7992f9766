"""A sorted list of waiting requests with cheap insertion and removal anywhere."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain

from sim.types import N, Request

Entry = tuple[N, N, float, N, Request]
"""What waiting requests are ordered by, smallest first: task rank, priority, value, trace row.

Trace rows differ, so the requests at the end are never compared.
"""

PIECE: N = 512
"""Longest piece: an insertion moves at most so many references."""


class Ordered:
    """Entries in order, in sorted pieces: O(log n) to find, a short move to insert or remove."""

    __slots__ = ("_lasts", "pieces")

    def __init__(self) -> None:
        self.pieces: list[list[Entry]] = [[]]
        """None is empty, unless all are."""
        self._lasts: list[Entry] = []
        """Largest entry of every piece but the last, when the piece was cut."""

    def add(self, entry: Entry) -> None:
        """Insert an entry."""
        at = 0
        if self._lasts:
            at = bisect_left(self._lasts, entry)
        piece = self.pieces[at]
        insort(piece, entry)
        if len(piece) > PIECE:
            half = len(piece) // 2
            self.pieces[at : at + 1] = [piece[:half], piece[half:]]
            self._lasts.insert(at, piece[half - 1])

    def discard(self, entry: Entry) -> None:
        """Remove an entry that is in the list."""
        at = bisect_left(self._lasts, entry) if self._lasts else 0
        piece = self.pieces[at]
        del piece[bisect_left(piece, entry)]
        if not piece and self._lasts:
            del self.pieces[at]
            del self._lasts[min(at, len(self._lasts) - 1)]

    def __iter__(self) -> Iterator[Entry]:
        """Iterate in order."""
        if not self._lasts:
            return iter(self.pieces[0])
        return chain.from_iterable(self.pieces)
