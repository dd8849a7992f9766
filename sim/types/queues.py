"""Waiting queues. The policy names the type; the engine pushes and removes, O(log n) each."""

from __future__ import annotations

import abc
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from math import inf
from operator import itemgetter
from typing import Final

from mypy_extensions import mypyc_attr

from sim.types.request import Request
from sim.types.units import N


@mypyc_attr(allow_interpreted_subclasses=True)
class WaitQueue(abc.ABC):
    """Requests that wait for one instance or for any, iterated in the order the policy wants.

    `tokens` is the number of tokens the waiting requests still have to prefill.
    """

    tokens: N

    @abc.abstractmethod
    def push(self, request: Request) -> None:
        """Add a newly arrived request."""

    @abc.abstractmethod
    def push_front(self, request: Request) -> None:
        """Put a preempted or re-queued request back, ahead of the others."""

    @abc.abstractmethod
    def remove(self, request: Request) -> None:
        """Take out a request, wherever it stands."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Request]:
        """Iterate in service order. The queue must not change meanwhile."""

    @abc.abstractmethod
    def __len__(self) -> N:
        """Return the number of waiting requests."""


class Fifo(WaitQueue):
    """First come, first served; re-queued requests stand in front."""

    def __init__(self) -> None:
        self.tokens: N = 0
        self._items: OrderedDict[N, Request] = OrderedDict()

    def push(self, request: Request) -> None:
        """Add a newly arrived request at the back."""
        self._items[request.id] = request
        self.tokens += request.target_tokens

    def push_front(self, request: Request) -> None:
        """Put a request in front."""
        self._items[request.id] = request
        self._items.move_to_end(request.id, last=False)
        self.tokens += request.target_tokens

    def remove(self, request: Request) -> None:
        """Take out a request."""
        del self._items[request.id]
        self.tokens -= request.target_tokens

    def __iter__(self) -> Iterator[Request]:
        """Iterate from the head."""
        return iter(self._items.values())

    def __len__(self) -> N:
        """Return the number of waiting requests."""
        return len(self._items)


PIECE: Final = 512
"""Longest piece of a `ByKey` queue: inserting moves at most so many references."""

Entry = tuple[float, N, Request]
"""Key, id, request: ids are unique, so requests are never compared."""

_KEY: Final = itemgetter(0)
_REQUEST: Final = itemgetter(2)


class ByKey(WaitQueue):
    """Smallest key first, ties by trace row; re-queued requests stand in front of all.

    A list of sorted pieces: O(log n) to find the piece, a short move to insert or remove, and
    iteration in order without sorting.

    Args:
        key: what a request is ordered by; must not change while it waits.
    """

    def __init__(self, key: Callable[[Request], float]) -> None:
        self.tokens: N = 0
        self._key = key
        self._front: OrderedDict[N, Request] = OrderedDict()
        self._entries: dict[N, Entry] = {}
        self._pieces: list[list[Entry]] = [[]]
        self._lasts: list[Entry] = []
        """Largest entry of every piece but the last."""

    def push(self, request: Request) -> None:
        """Add a newly arrived request."""
        entry = (self._key(request), request.id, request)
        self._entries[request.id] = entry
        at = bisect_left(self._lasts, entry)
        piece = self._pieces[at]
        insort(piece, entry)
        if len(piece) > PIECE:
            half = len(piece) // 2
            self._pieces[at : at + 1] = [piece[:half], piece[half:]]
            self._lasts.insert(at, piece[half - 1])
        self.tokens += request.target_tokens

    def push_front(self, request: Request) -> None:
        """Put a request in front."""
        self._front[request.id] = request
        self._front.move_to_end(request.id, last=False)
        self.tokens += request.target_tokens

    def remove(self, request: Request) -> None:
        """Take out a request."""
        self.tokens -= request.target_tokens
        if self._front.pop(request.id, None) is not None:
            return
        entry = self._entries.pop(request.id)
        at = bisect_left(self._lasts, entry)
        piece = self._pieces[at]
        del piece[bisect_left(piece, entry)]
        if not piece and self._lasts:
            del self._pieces[at]
            del self._lasts[min(at, len(self._lasts) - 1)]

    def key(self, request: Request) -> float:
        """Return the key that a request waits by."""
        return self._entries[request.id][0]

    def entries(self, above: float = -inf) -> Iterator[Entry]:
        """Iterate over key, id and request of those of a key above `above`, by key.

        The re-queued are left out.
        """
        whole = self._pieces
        if above > -inf:
            at = bisect_right(self._lasts, above, key=_KEY)
            piece, whole = whole[at], whole[at + 1 :]
            for i in range(bisect_right(piece, above, key=_KEY), len(piece)):
                yield piece[i]
        for piece in whole:
            yield from piece

    def __iter__(self) -> Iterator[Request]:
        """Iterate over the re-queued, then by key."""
        return chain(self._front.values(), map(_REQUEST, chain.from_iterable(self._pieces)))

    def __len__(self) -> N:
        """Return the number of waiting requests."""
        return len(self._front) + len(self._entries)
