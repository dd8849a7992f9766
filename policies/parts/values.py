"""Waiting requests by value, and predictions of when each has to start (Ascendra)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush, merge
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

    def seconds(self, price_s: float, tokens: N) -> float:
        """Return what is taken for a step of `tokens` tokens that lasts `price_s`."""
        hashed = tokens * _MULTIPLIER % _WORD / _WORD
        return price_s * (1.0 + self.error * (2.0 * hashed - 1.0))

    def prefill_s(self, cost: CostModel, tokens: N) -> float:
        """Return the estimated time of a prompt alone."""
        return self.seconds(cost.step(1, tokens, tokens, tokens * tokens, 0, 0) / FS_PER_S, tokens)


class ValueQueue(WaitQueue):
    """Waiting requests by falling value; those past their latest start are told apart.

    The latest start of a request is its TTFT deadline less the estimated time of its prompt; it is
    infinite without a bound. `expire` depends on the time alone, so asking twice changes nothing.
    Re-queued requests stand in front of all: they have their first token, or had their turn.

    Args:
        order: `edf` (value 1/(latest start - now), infinite when late), `sjf` (1/prompt) or `basic`
            ((bound + waited)/(bound * prompt); the artifact adds a second instead of the bound).
        estimator: of prompt times.
    """

    def __init__(self, order: str, estimator: Estimator) -> None:
        self.tokens: N = 0
        self.order = order
        self.front: OrderedDict[N, Request] = OrderedDict()
        self.starts = ByKey(self._known_start)
        """All but `front`, earliest latest start first."""
        self.live = ByKey(self._key)
        self.late = ByKey(self._key)
        self._estimator = estimator
        self._start_s: dict[N, float] = {}
        self._late_ids: set[N] = set()
        self._expiry: list[tuple[float, N]] = []
        """Heap of (latest start, id); an entry is stale when the id waits no more or is late."""

    def latest_start_s(self, request: Request) -> float:
        """Return when a waiting request has to start to be in time."""
        return self._start_s[request.id]

    def _known_start(self, request: Request) -> float:
        return self._start_s[request.id]

    def _key(self, request: Request) -> float:
        return request.target_tokens if self.order == "sjf" else self._start_s[request.id]

    def value(self, request: Request, now_s: float) -> float:
        """Return the value of order `basic`; 0 without a bound."""
        if request.deadline_s < 0:
            return 0.0
        bound_s = request.deadline_s - request.arrival_s
        return (bound_s + now_s - request.arrival_s) / (bound_s * request.target_tokens)

    def push(self, request: Request) -> None:
        """Add a request that has arrived, or was moved here."""
        start_s = inf
        if request.deadline_s >= 0 and request.home is not None:
            cost = request.home.cost
            start_s = request.deadline_s - self._estimator.prefill_s(cost, request.target_tokens)
            heappush(self._expiry, (start_s, request.id))
        self._start_s[request.id] = start_s
        self.starts.push(request)
        self.live.push(request)
        self.tokens += request.target_tokens

    def push_front(self, request: Request) -> None:
        """Put a preempted or failed request in front."""
        self.front[request.id] = request
        self.front.move_to_end(request.id, last=False)
        self.tokens += request.target_tokens

    def remove(self, request: Request) -> None:
        """Take out a request."""
        self.tokens -= request.target_tokens
        if self.front.pop(request.id, None) is not None:
            return
        (self.late if request.id in self._late_ids else self.live).remove(request)
        self._late_ids.discard(request.id)
        self.starts.remove(request)
        del self._start_s[request.id]

    def expire(self, now_s: float) -> None:
        """Tell apart those whose latest start is not after `now_s`."""
        expiry = self._expiry
        while expiry and expiry[0][0] <= now_s:
            start_s, id = heappop(expiry)
            if self._start_s.get(id) != start_s or id in self._late_ids:
                continue
            request = self.live.entry(id)
            self.live.remove(request)
            self.late.push(request)
            self._late_ids.add(id)

    def first_live(self) -> Request | None:
        """Return the most valuable of those that are not late."""
        return next(iter(self.live), None)

    def by_value(self, now_s: float) -> Iterator[Request]:
        """Iterate by falling value; the late have an infinite one with `edf`."""
        if self.order == "edf":
            return chain(self.front.values(), self.late, self.live)
        if self.order == "sjf":
            both = merge(self.late, self.live, key=lambda r: (r.target_tokens, r.id))
            return chain(self.front.values(), both)
        return chain(self.front.values(), self._sorted(chain(self.late, self.live), now_s))

    def late_last(self, now_s: float) -> Iterator[Request]:
        """Iterate by falling value, the late behind all others."""
        if self.order != "basic":
            return chain(self.front.values(), self.live, self.late)
        live, late = self._sorted(self.live, now_s), self._sorted(self.late, now_s)
        return chain(self.front.values(), live, late)

    def _sorted(self, requests: Iterator[Request] | ByKey, now_s: float) -> list[Request]:
        return sorted(requests, key=lambda r: (-self.value(r, now_s), r.id))

    def __iter__(self) -> Iterator[Request]:
        """Iterate over the re-queued, the late and the others."""
        return chain(self.front.values(), self.late, self.live)

    def __len__(self) -> N:
        """Return the number of waiting requests."""
        return len(self.front) + len(self.starts)
