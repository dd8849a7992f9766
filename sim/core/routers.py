"""Routers: which instance a request goes to.

They read only what does not change inside a span of steps (requests and prompt tokens, not blocks
in use), so that fused and step-by-step runs agree.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sim.types import BadInput, N, Request, Router, View


class RoundRobin(Router):
    """Instances in turn."""

    def __init__(self, seed: int) -> None:
        self._next: N = 0

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return the next instance."""
        choice = instances[self._next % len(instances)]
        self._next += 1
        return choice


class Random(Router):
    """A uniformly random instance."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return a random instance."""
        return instances[int(self._random.random() * len(instances))]


class ShortestQueue(Router):
    """Join the shortest queue: fewest requests that have not left; ties go to the lowest id."""

    def __init__(self, seed: int) -> None:
        pass

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return the instance with the fewest outstanding requests."""
        best = instances[0]
        for view in instances:
            if view.outstanding < best.outstanding:
                best = view
        return best


class ShortestQueueTokens(Router):
    """Fewest tokens waiting to be prefilled; ties by outstanding requests, then id."""

    def __init__(self, seed: int) -> None:
        pass

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return the instance with the fewest waiting prompt tokens."""
        best = instances[0]
        best_key = (best.waiting.tokens, best.outstanding)
        for view in instances:
            key = (view.waiting.tokens, view.outstanding)
            if key < best_key:
                best, best_key = view, key
        return best


class LeastLoaded(Router):
    """Fewest prompt tokens of outstanding requests: a proxy of the KV cache they will hold."""

    def __init__(self, seed: int) -> None:
        pass

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return the instance with the fewest outstanding prompt tokens."""
        best = instances[0]
        for view in instances:
            if view.outstanding_tokens < best.outstanding_tokens:
                best = view
        return best


class PowerOfTwo(Router):
    """The less occupied of two different random instances."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return the instance with fewer outstanding requests out of two."""
        count = len(instances)
        if count == 1:
            return instances[0]
        first = int(self._random.random() * count)
        second = int(self._random.random() * (count - 1))
        if second >= first:
            second += 1
        a, b = instances[first], instances[second]
        return b if (b.outstanding, b.id) < (a.outstanding, a.id) else a


ROUTERS: dict[str, Callable[[int], Router]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "shortest-queue": ShortestQueue,
    "shortest-queue-tokens": ShortestQueueTokens,
    "least-loaded": LeastLoaded,
    "power-of-two": PowerOfTwo,
}


def make_router(name: str, seed: int) -> Router:
    """Return a new router called `name` whose random choices come from `seed`."""
    if name not in ROUTERS:
        raise BadInput(f"engine.router: unknown router {name!r}; valid: {', '.join(ROUTERS)}")
    return ROUTERS[name](seed)
