"""Waiting queues. The policy names the type; the engine pushes and removes, O(log n) each."""

from __future__ import annotations

import abc
from collections import OrderedDict
from collections.abc import Iterator

from sim.types.request import Request
from sim.types.units import N


class WaitQueue(abc.ABC):
    """Requests that wait on one instance, iterated in the order the policy wants.

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
