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


class PrefixRouting:
    """Parameters of the router `prefix`, named and set as in SGLang's router.

    Args:
        cache_threshold: share of a prompt that has to match before the match decides.
        balance_abs_threshold: requests outstanding on the busiest instance more than on the idlest
            before load decides.
        balance_rel_threshold: and the ratio of both.
    """

    def __init__(
        self,
        cache_threshold: float = 0.3,
        balance_abs_threshold: N = 64,
        balance_rel_threshold: float = 1.5,
    ) -> None:
        self.cache_threshold = cache_threshold
        self.balance_abs_threshold = balance_abs_threshold
        self.balance_rel_threshold = balance_rel_threshold


class Prefix(Router):
    """Cache-aware: to the instance that was sent the longest prefix of the prompt, within limits.

    While the instances are out of balance by both thresholds, the one with the fewest outstanding
    requests. Else the one with the longest match, ties by outstanding requests and id, if the match
    covers more than `cache_threshold` of the prompt. Else the one that was sent the fewest tokens
    that it did not have: the one with the most room in its cache.

    It knows what it has sent, not what is still cached, and forgets nothing, as routers outside the
    engines do (SGLang's keeps 2**26 characters). Prefixes are those that the trace knows of.
    """

    def __init__(self, seed: int, limits: PrefixRouting | None = None) -> None:
        self.limits = limits or PrefixRouting()
        self._sent: dict[N, dict[N, N]] = {}
        """Instance -> node -> tokens from the start of the prompt to where it was sent."""
        self._tokens: dict[N, N] = {}
        """Instance -> tokens sent that it had not been sent before."""

    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return the instance with the longest match, if it is not overloaded."""
        best, matched = self._choose(request, instances)
        new = request.input_len - matched
        self._tokens[best.id] = self._tokens.get(best.id, 0) + new
        if request.prefix:
            sent = self._sent.setdefault(best.id, {})
            for node, end in request.prefix:
                if sent.get(node, 0) < end:
                    sent[node] = end
        return best

    def _choose(self, request: Request, instances: Sequence[View]) -> tuple[View, N]:
        limits, tokens = self.limits, self._tokens
        busiest = max([view.outstanding for view in instances])
        idlest = min(instances, key=_load)
        if (
            busiest - idlest.outstanding > limits.balance_abs_threshold
            and busiest > limits.balance_rel_threshold * idlest.outstanding
        ):
            return idlest, self._match(request, idlest)
        if request.prefix:
            found = [(-self._match(request, view), view.outstanding, view.id) for view in instances]
            longest, _, id = min(found)
            if -longest > limits.cache_threshold * request.input_len:
                return next(view for view in instances if view.id == id), -longest
        best = min(instances, key=lambda view: (tokens.get(view.id, 0), view.id))
        return best, self._match(request, best)

    def _match(self, request: Request, view: View) -> N:
        """Return how many tokens of the prompt an instance was sent already."""
        sent = self._sent.get(view.id)
        matched: N = 0
        if sent is not None:
            for node, end in request.prefix:
                here = min(sent.get(node, 0), end)
                matched = max(matched, here)
                if here < end:
                    break
        return matched


def _load(view: View) -> tuple[N, N]:
    return view.outstanding, view.id


ROUTERS: dict[str, Callable[[int], Router]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "shortest-queue": ShortestQueue,
    "shortest-queue-tokens": ShortestQueueTokens,
    "least-loaded": LeastLoaded,
    "power-of-two": PowerOfTwo,
    "prefix": Prefix,
}


def make_router(name: str, seed: int, prefix: PrefixRouting | None = None) -> Router:
    """Return a new router.

    Args:
        name: one of `ROUTERS`.
        seed: of its random choices.
        prefix: parameters of `prefix`.
    """
    if name == "prefix":
        return Prefix(seed, prefix)
    if name not in ROUTERS:
        raise BadInput(f"engine.router: unknown router {name!r}; valid: {', '.join(ROUTERS)}")
    return ROUTERS[name](seed)
