"""Groups of requests that run as one batch: grouping by price, in time for deadlines.

A *group* is a set of requests prefilled in one padded batch: n rows, every one as long as the
longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain
from math import inf
from operator import add

from sim.types import FS_PER_S, ByKey, CostModel, N, Request, View, WaitQueue

GRACE = 1e-12
"""Share of a deadline by which it may be missed: rounding of times must not lose a request."""


class PaddedPrices:
    """Prices of padded groups on one cost model, computed on first use.

    Args:
        cost: prices a step.
        max_tokens: padded tokens of a group, at most; a single request may be longer.
        max_rows: requests of a group, at most.
    """

    def __init__(self, cost: CostModel, max_tokens: N, max_rows: N) -> None:
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.rows: dict[N, list[int]] = {}
        """By length, the prices of 1, 2, ... rows of it, as far as they have been asked for."""
        self._cost = cost

    def of(self, longest: N, rows: N) -> int:
        """Return the price of a group of `rows` rows of `longest` tokens, femtoseconds."""
        prices = self.rows.get(longest)
        if prices is None or len(prices) < rows:
            prices = self.extended(longest, rows)
        return prices[rows - 1]

    def extended(self, longest: N, rows: N) -> list[int]:
        """Return the prices of 1 to at least `rows` rows."""
        prices = self.rows.setdefault(longest, [])
        for n in range(len(prices) + 1, rows + 1):
            new = n * longest
            prices.append(self._cost.step(n, new, new, new * longest, 0, 0))
        return prices


def cut_groups(lengths: Sequence[N], prices: PaddedPrices) -> list[N]:
    """Cut sorted lengths into groups of least total price.

    f[i] = min over n of f[i - n] + price(n rows of lengths[i - 1]), n up to what a group may have;
    ties go to the smaller last group. Groups of neighbouring lengths suffice when the price grows
    with the rows and with their length.

    Args:
        lengths: prompt lengths in tokens, ascending.
        prices: the prices, and with them the limits of a group.

    Returns:
        For each i, where the group that ends with lengths[i] starts; `group_at` reads it.

    Complexity: O(n * k) for n requests and at most k in a group.
    """
    best: list[int] = [0]
    starts: list[N] = []
    known, tokens, rows = prices.rows, prices.max_tokens, prices.max_rows
    for end, longest in enumerate(lengths, 1):
        most = min(end, rows, tokens // longest) or 1
        row = known.get(longest)
        if row is None or len(row) < most:
            row = prices.extended(longest, most)
        totals = list(map(add, best[: -most - 1 : -1], row))
        least = min(totals)
        best.append(least)
        starts.append(end - 1 - totals.index(least))
    return starts


def group_at(starts: Sequence[N], position: N) -> tuple[N, N]:
    """Return the bounds (first, end) of the group that holds `position`."""
    end = len(starts)
    while starts[end - 1] > position:
        end = starts[end - 1]
    return starts[end - 1], end


class Tally:
    """Sums and maxima over the members of a batch being built, for UELLM's acceptance rules.

    `_s` are the members' end-to-end bounds (SLOs), tokens their predicted output lengths.
    """

    def __init__(self) -> None:
        self.size: N = 0
        self.total: N = 0
        self.longest: N = 0
        self.total_slo_s = 0.0
        self.most_slo_s = 0.0

    def add(self, length: N, slo_s: float) -> None:
        """Count another member."""
        self.size += 1
        self.total += length
        self.total_slo_s += slo_s
        self.longest = max(self.longest, length)
        self.most_slo_s = max(self.most_slo_s, slo_s)

    def uneven_tokens(self, length: N) -> N:
        """Return the code's term for a newcomer: by how much it is longer, times the batch."""
        return (length - self.longest) * (self.size + 1)

    def uneven_s(self, slo_s: float) -> float:
        """Return the same with SLOs."""
        return (slo_s - self.most_slo_s) * (self.size + 1)

    def weighed_s(self, length: N, slo_s: float, weight_slo: float, weight_len_s: float) -> float:
        """Return the text's w1*T_l + w2*T_o, without L, for the batch with the newcomer."""
        size = self.size + 1
        latency_s = self.total_slo_s + slo_s + size * max(self.most_slo_s, slo_s)
        tokens = self.total + length + size * max(self.longest, length)
        return (weight_slo * latency_s + weight_len_s * tokens) * size


class DeadlineQueue(WaitQueue):
    """Waiting requests in order; those that can no longer be in time stand apart.

    `expire` moves requests from `live` to `lost`; it depends on the time alone, so that asking
    twice changes nothing. Pushing, removing and expiring are O(log n). An arrival is only put in
    order when somebody looks: who leaves before, as the only one waiting, never is.

    Args:
        key: what a request is ordered by; must not change while it waits.
        latest_start_s: last time at which its prefill may start to be in time; infinity: never
            lost; None: nobody is. Re-queued requests stand in front and are never lost.
    """

    def __init__(
        self, key: Callable[[Request], float], latest_start_s: Callable[[Request], float] | None
    ) -> None:
        self.tokens: N = 0
        self.lost = ByKey(key)
        self._live = ByKey(key)
        self._new: dict[N, Request] = {}
        """Arrived since somebody looked."""
        self.passed_tokens: N = 0
        """Prompt tokens taken since the last time that the oldest request was taken."""
        self._latest_start_s = latest_start_s
        self._expiry: list[tuple[float, N]] = []
        """Heap of (latest start, id); an entry is stale when the id is not in `_watched`."""
        self._watched: dict[N, Request] = {}
        self._lost_ids: set[N] = set()
        self._by_age: OrderedDict[N, Request] = OrderedDict()

    def push(self, request: Request) -> None:
        """Add a newly arrived request."""
        self.tokens += request.target_tokens
        self._by_age[request.id] = request
        self._new[request.id] = request

    @property
    def live(self) -> ByKey:
        """Those that have not expired, in order."""
        for request in self._new.values():
            self._live.push(request)
            if self._latest_start_s is not None:
                latest_s = self._latest_start_s(request)
                if latest_s < inf:
                    self._watched[request.id] = request
                    heappush(self._expiry, (latest_s, request.id))
        self._new.clear()
        return self._live

    def push_front(self, request: Request) -> None:
        """Put a re-queued request in front."""
        self._live.push_front(request)
        self.tokens += request.target_tokens
        self._by_age[request.id] = request
        self._by_age.move_to_end(request.id, last=False)

    def remove(self, request: Request) -> None:
        """Take out a request."""
        id, tokens = request.id, request.target_tokens
        self.tokens -= tokens
        self.passed_tokens += tokens
        if next(iter(self._by_age)) == id:
            self.passed_tokens = 0
        del self._by_age[id]
        if id in self._new:
            del self._new[id]
        elif id in self._lost_ids:
            self._lost_ids.discard(id)
            self.lost.remove(request)
        else:
            self._watched.pop(id, None)
            self._live.remove(request)

    def oldest(self) -> Request:
        """Return the request that has waited longest; there must be one."""
        return self._by_age[next(iter(self._by_age))]

    def expire(self, now_s: float) -> None:
        """Move requests whose latest start is before `now_s` to `lost`."""
        live, expiry = self.live, self._expiry
        while expiry and expiry[0][0] < now_s:
            request = self._watched.pop(heappop(expiry)[1], None)
            if request is not None:
                live.remove(request)
                self.lost.push(request)
                self._lost_ids.add(request.id)

    def __iter__(self) -> Iterator[Request]:
        """Iterate over those in time, then over the lost."""
        return chain(self.live, self.lost)

    def __len__(self) -> N:
        """Return the number of waiting requests."""
        return len(self._by_age)


class GroupFormer:
    """Forms the prefill batch that the first of some candidates leads.

    Args:
        max_tokens: tokens of a batch, padding included, at most; a single prompt may be longer.
        max_rows: requests of a batch, at most.
        padded: price and count rows as long as the longest.
        by_price: if padded, take the group that the grouping programme puts the first candidate
            in, instead of filling a batch in order.
        shrink: drop members until those that can make their deadlines do.
        margin_s: seconds before a deadline at which the prefill has to end.
    """

    def __init__(
        self,
        max_tokens: N,
        max_rows: N,
        *,
        padded: bool,
        by_price: bool,
        shrink: bool,
        margin_s: float,
    ) -> None:
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.padded = padded
        self.by_price = by_price and padded
        self.shrink = shrink
        self.margin_s = margin_s
        self._prices: dict[CostModel, PaddedPrices] = {}

    def latest_start_s(self, request: Request) -> float:
        """Return when a request has to start, alone, to be in time; infinity if it has no bound."""
        if request.deadline_s < 0 or request.home is None:
            return inf
        alone_fs = self._prices_of(request.home.cost).of(request.target_tokens, 1)
        return self._due_s(request) - alone_fs / FS_PER_S

    def batch(self, view: View, candidates: list[Request]) -> list[Request]:
        """Return the group of the first candidate, members in candidate order."""
        if len(candidates) == 1:
            return candidates
        if not self.by_price:
            return self._filled(view, candidates)
        lengths = [request.target_tokens for request in candidates]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        prices = self._prices_of(view.cost)
        starts = cut_groups([lengths[i] for i in order], prices)
        at = order.index(0)
        first, end = group_at(starts, at)
        group = order[first:end]
        members = [candidates[i] for i in group]
        count = self._most(view, members, at - first + 1)
        if not count:  # the first candidate is the longest left
            others = sorted(members[: at - first], key=self._urgency)
            members = [candidates[0], *others]
            return members[: self._most(view, members, 1)]
        return [candidates[i] for i in sorted(group[:count])]

    def _most(self, view: View, members: Sequence[Request], at_least: N) -> N:
        """Return how many of the first members can run together; 0 if fewer than `at_least`.

        The longest is the last member or the first.
        """
        prices = self._prices_of(view.cost)
        rows = len(members)
        longest = max(members[0].target_tokens, members[-1].target_tokens)
        end_s = view.now_s + prices.of(longest, rows) / FS_PER_S
        fits = rows * view.blocks_for(longest) <= view.free_blocks
        if fits and end_s <= self._first_due_s(members):
            return rows
        due_s, need, longest = inf, 0, 0
        limits: list[tuple[float, N, N]] = []
        for request in members:
            due_s = min(due_s, self._still_due_s(view, request))
            need += view.blocks_for(request.target_tokens)
            longest = max(longest, request.target_tokens)
            limits.append((due_s, need, longest))
        for count in range(rows, at_least - 1, -1):
            due_s, need, longest = limits[count - 1]
            end_s = view.now_s + prices.of(longest, count) / FS_PER_S
            if need <= view.free_blocks and end_s <= due_s:
                return count
        return 0

    def _first_due_s(self, members: Sequence[Request]) -> float:
        """Return when the first member is due, those included that are late anyway."""
        deadlines_s = [request.deadline_s for request in members]
        if not self.shrink or max(deadlines_s) < 0:
            return inf
        return min(deadlines_s) * (1 + GRACE) - self.margin_s

    def _filled(self, view: View, candidates: list[Request]) -> list[Request]:
        """Take candidates in order until one breaks a limit or makes a member late."""
        room = view.free_blocks
        due_s, longest, total, quad = inf, 0, 0, 0
        batch: list[Request] = []
        for request in candidates[: self.max_rows]:
            tokens = request.target_tokens
            longest, total, quad = max(longest, tokens), total + tokens, quad + tokens * tokens
            rows = len(batch) + 1
            if self.padded:
                total, quad = rows * longest, rows * longest * longest
            room -= view.blocks_for(tokens)
            due_s = min(due_s, self._still_due_s(view, request))
            if batch:
                end_s = view.now_s + view.cost.step(rows, total, total, quad, 0, 0) / FS_PER_S
                if room < 0 or total > self.max_tokens or end_s > due_s:
                    break
            batch.append(request)
        return batch

    def _still_due_s(self, view: View, request: Request) -> float:
        """Return when the prefill of a member has to end; infinity if it is late anyway."""
        if not self.shrink:
            return inf
        due_s = self._due_s(request)
        alone_fs = self._prices_of(view.cost).of(request.target_tokens, 1)
        return inf if view.now_s + alone_fs / FS_PER_S > due_s else due_s

    def _urgency(self, request: Request) -> tuple[float, N]:
        return self._due_s(request), request.id

    def _prices_of(self, cost: CostModel) -> PaddedPrices:
        prices = self._prices.get(cost)
        if prices is None:
            prices = PaddedPrices(cost, self.max_tokens, self.max_rows)
            self._prices[cost] = prices
        return prices

    def _due_s(self, request: Request) -> float:
        """Return when its prefill has to end."""
        if request.deadline_s < 0:
            return inf
        return request.deadline_s * (1 + GRACE) - self.margin_s
