"""Waiting requests by value, and predictions of when each has to start (Ascendra)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import chain
from math import inf

from sim.types import FS_PER_S, ByKey, CostModel, N, Request, WaitQueue

_MULTIPLIER, _WORD = 2654435761, 1 << 32
"""Knuth's multiplicative hash."""


class Estimator:
    """The cost model with an error, as a fitted latency model has one.

    The error is a fixed function of the tokens of a step: systematic, as that of a regression, and
    the same whatever the time scale or the numbering of requests.

    Args:
        error: largest share by which an estimate is off; errors are uniform between.
    """

    def __init__(self, error: float) -> None:
        self.error = error
        self._prompts: dict[CostModel, dict[N, float]] = {}

    def seconds(self, price_s: float, tokens: N) -> float:
        """Return what is taken for a step of `tokens` tokens that lasts `price_s`."""
        hashed = tokens * _MULTIPLIER % _WORD / _WORD
        return price_s * (1.0 + self.error * (2.0 * hashed - 1.0))

    def prefill_s(self, cost: CostModel, tokens: N) -> float:
        """Return the estimated time of a prompt alone; each length is priced once."""
        known = self._prompts.get(cost)
        if known is None:
            known = self._prompts[cost] = {}
        found = known.get(tokens)
        if found is None:
            price_s = cost.step(1, tokens, tokens, tokens * tokens, 0, 0) / FS_PER_S
            found = known[tokens] = self.seconds(price_s, tokens)
        return found


class ValueQueue(WaitQueue):
    """Waiting requests by falling value; those past their latest start are told apart.

    The latest start of a request is its TTFT deadline less the estimated time of its prompt; it is
    infinite without a bound. Values change with time but, `basic` apart, not their order: nothing
    is sorted again. Re-queued requests stand in front of all: they have their first token, or had
    their turn.

    Args:
        order: `edf` (value 1/(latest start - now), infinite when late), `sjf` (1/prompt) or `basic`
            ((bound + waited)/(bound * prompt); the artifact adds a second instead of the bound).
        estimator: of prompt times.

    Attributes:
        now_s: the time of a decision; whoever decides sets it first.
    """

    def __init__(self, order: str, estimator: Estimator) -> None:
        self.tokens: N = 0
        self.front: OrderedDict[N, Request] = OrderedDict()
        self.starts = ByKey(self._latest_start_s)
        """All but `front`, earliest latest start first."""
        self.now_s = -inf
        self._estimator = estimator
        self._basic = order == "basic"
        self._sjf = order == "sjf"
        self._live, self._late = ByKey(_length), ByKey(_length)
        """With `sjf` the same by length, apart by whether their latest start is after:"""
        self._parted_s = -inf

    def _latest_start_s(self, request: Request) -> float:
        """Return when a request has to start to be in time."""
        if request.deadline_s < 0 or request.home is None:
            return inf
        cost = request.home.cost
        return request.deadline_s - self._estimator.prefill_s(cost, request.target_tokens)

    def push(self, request: Request) -> None:
        """Add a request that has arrived, or was moved here."""
        self.starts.push(request)
        if self._sjf:
            self._lengths_of(request).push(request)
        self.tokens += request.target_tokens

    def push_front(self, request: Request) -> None:
        """Put a preempted or failed request in front."""
        self.front[request.id] = request
        self.front.move_to_end(request.id, last=False)
        self.tokens += request.target_tokens

    def remove(self, request: Request) -> None:
        """Take out a request."""
        self.tokens -= request.target_tokens
        if self.front and self.front.pop(request.id, None) is not None:
            return
        if self._sjf:
            self._lengths_of(request).remove(request)
        self.starts.remove(request)

    def _lengths_of(self, request: Request) -> ByKey:
        return self._late if self.starts.key(request) <= self._parted_s else self._live

    def _part(self) -> None:
        """Tell apart who is late by now."""
        for start_s, _, request in self.starts.entries(self._parted_s):
            if start_s > self.now_s:
                break
            self._live.remove(request)
            self._late.push(request)
        self._parted_s = self.now_s

    def by_value(self) -> Iterator[Request]:
        """Iterate by falling value; the late have an infinite one with `edf`."""
        if self._basic:
            return chain(self.front.values(), self._sorted(self.starts))
        if self._sjf:
            self._part()
            both = merge(self._late, self._live, key=lambda r: (r.target_tokens, r.id))
            return chain(self.front.values(), both)
        return chain(self.front.values(), self.starts)

    def late_last(self) -> Iterator[Request]:
        """Iterate by falling value, the late behind all others."""
        if self._sjf:
            self._part()
            return chain(self.front.values(), self._live, self._late)
        if self._basic:
            live, late = self._sorted(self._in_time()), self._sorted(self._expired())
            return chain(self.front.values(), live, late)
        return chain(self.front.values(), self._in_time(), self._expired())

    def next_late_s(self) -> float:
        """Return the latest start of the most valuable of those that are not late."""
        if self._sjf:
            self._part()
            first = next(iter(self._live), None)
            return inf if first is None else self.starts.key(first)
        entry = next(self.starts.entries(self.now_s), None)
        return inf if entry is None else entry[0]

    def _in_time(self) -> Iterator[Request]:
        """Iterate over those in time, earliest latest start first."""
        for _, _, request in self.starts.entries(self.now_s):
            yield request

    def _expired(self) -> Iterator[Request]:
        """Iterate over the late, earliest latest start first."""
        for start_s, _, request in self.starts.entries():
            if start_s > self.now_s:
                return
            yield request

    def _sorted(self, requests: Iterable[Request]) -> list[Request]:
        now_s = self.now_s
        return sorted(requests, key=lambda r: (-_basic_value(r, now_s), r.id))

    def __iter__(self) -> Iterator[Request]:
        """Iterate over the re-queued, the late and the others."""
        if self._sjf:
            return chain(self.front.values(), self._late, self._live)
        return chain(self.front.values(), self.starts)

    def __len__(self) -> N:
        """Return the number of waiting requests."""
        return len(self.front) + len(self.starts)


def _length(request: Request) -> float:
    return float(request.target_tokens)


def _basic_value(request: Request, now_s: float) -> float:
    """Return the value of order `basic`; 0 without a bound."""
    if request.deadline_s < 0:
        return 0.0
    bound_s = request.deadline_s - request.arrival_s
    return (bound_s + now_s - request.arrival_s) / (bound_s * request.target_tokens)
