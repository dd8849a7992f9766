"""Orders of a waiting queue. Each is kept by the queue: no plan sorts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from sim.types import ByKey, Fifo, N, Request, WaitQueue


def input_len(request: Request) -> float:
    """Return the prompt length: shortest job first."""
    return float(request.input_len)


def deadline_s(request: Request) -> float:
    """Return the deadline of the first token; requests without one come last."""
    return request.deadline_s if request.deadline_s >= 0 else inf


def priority(request: Request) -> float:
    """Return the priority: smaller goes first."""
    return float(request.priority)


class Ranked(WaitQueue):
    """Smallest key first, ties by trace row; re-queued requests go back to their rank.

    Args:
        key: what a request is ordered by; must not change while it waits.
    """

    def __init__(self, key: Callable[[Request], float]) -> None:
        self.tokens: N = 0
        self._queue = ByKey(key)

    def push(self, request: Request) -> None:
        """Add a newly arrived request."""
        self._queue.push(request)
        self.tokens = self._queue.tokens

    def push_front(self, request: Request) -> None:
        """Put a preempted or re-queued request back, at its rank."""
        self.push(request)

    def remove(self, request: Request) -> None:
        """Take out a request."""
        self._queue.remove(request)
        self.tokens = self._queue.tokens

    def __iter__(self) -> Iterator[Request]:
        """Iterate by key."""
        return iter(self._queue)

    def __len__(self) -> N:
        """Return the number of waiting requests."""
        return len(self._queue)


def ordered_queue(order: str) -> WaitQueue:
    """Return an empty queue for `order`.

    `fcfs`, `sjf` (shortest prompt first) and `edf` (earliest deadline first) put preempted requests
    in front; `priority` puts them back at their rank, as vLLM does.
    """
    if order == "sjf":
        return ByKey(input_len)
    if order == "edf":
        return ByKey(deadline_s)
    if order == "priority":
        return Ranked(priority)
    return Fifo()


def lowest_rank(running: dict[N, Request]) -> Request:
    """Return the running request of lowest priority, of those the last to arrive."""
    worst = running[next(reversed(running))]
    for request in running.values():
        if (request.priority, request.id) > (worst.priority, worst.id):
            worst = request
    return worst
