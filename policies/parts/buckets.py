"""A waiting queue cut into buckets by prompt length, and the paper's rule for cutting it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from typing import Final

from policies.parts.histogram import LengthHistogram
from policies.parts.ordered import Entry, Ordered
from sim.types import N, Request, WaitQueue

OPERATIONS = ("assignments", "split_tests", "splits", "merges", "moves", "programmes")
"""What `operation_counts` counts: requests put into a bucket, buckets tested for a split, splits
and merges done, requests that a split or merge puts into another bucket, boundary computations."""

FEW: Final = 32
"""So many waiting requests are sorted faster than filed in bins or merged."""


def new_counts() -> dict[str, N]:
    """Return operation counters at zero."""
    return dict.fromkeys(OPERATIONS, 0)


class BucketQueue(WaitQueue):
    """Requests sorted into fine length bins; a bucket is a run of neighbouring bins.

    A bin keeps its requests in service order, so cutting or joining buckets moves no request: it
    only changes where the runs begin. Pushing and removing are O(log n). Bins are filled when
    somebody counts what is in them, or when more than `FEW` wait; before, requests lie loose.
    Re-queued requests stand in front of all, outside the buckets.

    Args:
        starts: shortest length of every bin, ascending from 0; the last bin has no upper end.
        entry: gives a request its place in service order; must not change while it waits.
        counts: operation counters to add to; None keeps own ones.
        histogram: is told the length and the arrival time of every request pushed.
    """

    def __init__(
        self,
        starts: Sequence[N],
        entry: Callable[[Request], Entry],
        counts: dict[str, N] | None = None,
        histogram: LengthHistogram | None = None,
    ) -> None:
        self.tokens: N = 0
        self.starts = list(starts)
        self.operation_counts = new_counts() if counts is None else counts
        self.histogram = histogram
        self.revision: N = 0
        """Changes of the queue so far."""
        self.adjusted: N = -1
        """The revision at which the buckets were last reviewed."""
        self.operations: N = 0
        """Bucketing operations on this queue so far."""
        self.charged: N = 0
        """Value of `operations` when the last batch left."""
        self.cuts: list[N] = [0]
        """First bin of every bucket."""
        self._sizes: list[N] = [0] * len(self.starts)
        """Requests in every bin."""
        self.num_bucketed: N = 0
        """Requests in buckets: those waiting that were not re-queued."""
        self._entry = entry
        self._front: OrderedDict[N, Request] = OrderedDict()
        self._loose: dict[N, Request] = {}
        """In buckets, but in no bin; none while any is in a bin."""
        self._bins: dict[N, Ordered] = {}
        """The bins that are not empty."""
        self._made: dict[N, Ordered] = {}
        """All bins ever used: an emptied one is used again."""
        self._places: dict[N, tuple[N, Entry]] = {}
        """Bin and entry of every request in a bin."""

    # -- the queue --------------------------------------------------------------------------

    def push(self, request: Request) -> None:
        """Assign an arriving request to its bucket."""
        tokens = request.target_tokens
        self.num_bucketed += 1
        self.tokens += tokens
        self.revision += 1
        self.operation_counts["assignments"] += 1
        self.operations += 1
        if self.histogram is not None:
            self.histogram.add(tokens, request.arrival_s)
        if self._places:
            self._file(request)
            return
        self._loose[request.id] = request
        if len(self._loose) > FEW:
            self._file_all()

    def _file_all(self) -> None:
        """Put the loose requests into their bins."""
        for request in self._loose.values():
            self._file(request)
        self._loose.clear()

    def _file(self, request: Request) -> None:
        """Put a request into its bin."""
        at = bisect_right(self.starts, request.target_tokens) - 1
        entry = self._entry(request)
        self._places[request.id] = (at, entry)
        entries = self._bins.get(at)
        if entries is None:
            entries = self._made.get(at)
            if entries is None:
                entries = self._made[at] = Ordered()
            self._bins[at] = entries
        entries.add(entry)
        self._sizes[at] += 1

    def push_front(self, request: Request) -> None:
        """Put a preempted or re-queued request in front of all."""
        self._front[request.id] = request
        self._front.move_to_end(request.id, last=False)
        self.tokens += request.target_tokens
        self.revision += 1

    def remove(self, request: Request) -> None:
        """Take out a request."""
        self.tokens -= request.target_tokens
        self.revision += 1
        self.charged = self.operations
        if self._front and self._front.pop(request.id, None) is not None:
            return
        self.num_bucketed -= 1
        if self._loose:
            del self._loose[request.id]
            return
        at, entry = self._places.pop(request.id)
        self._bins[at].discard(entry)
        self._sizes[at] -= 1
        if not self._sizes[at]:
            del self._bins[at]

    def __iter__(self) -> Iterator[Request]:
        """Iterate over the re-queued, then over all buckets in service order."""
        yield from self._front.values()
        for entry in self._sorted_loose() or merge(*self._bins.values()):
            yield entry[4]

    def __len__(self) -> N:
        """Return the number of waiting requests."""
        return len(self._front) + self.num_bucketed

    # -- buckets ----------------------------------------------------------------------------

    def bucket_of(self, request: Request) -> N:
        """Return the index of the bucket a request belongs to."""
        at = bisect_right(self.starts, request.target_tokens) - 1
        return bisect_right(self.cuts, at) - 1

    def only(self) -> Request | None:
        """Return the only request that waits; None if there are others, or it was put in front."""
        if len(self._loose) != 1 or self._front:
            return None
        return next(iter(self._loose.values()))

    def candidates(self) -> Iterable[Entry]:
        """Return what the next batch may hold, in service order: of one bucket, no other.

        It is the bucket of the request that stands first of all. While requests stand in front, it
        is the first one's bucket, and only those in front are named.
        """
        if self._front:
            return self._in_front()
        if self._loose:
            return self._candidates_of_few()
        bins = self._bins
        if len(bins) < 2:
            return next(iter(bins.values()), ())
        runs = list(bins.values())
        if len(self.cuts) > 1:
            head = min([entries.pieces[0][0] for entries in runs])
            begin, end = self.span(bisect_right(self.cuts, self._places[head[3]][0]) - 1)
            runs = [entries for at, entries in bins.items() if begin <= at < end]
            if len(runs) == 1:
                return runs[0]
        if self.num_bucketed > FEW:
            return merge(*runs)
        return sorted([entry for entries in runs for entry in entries])

    def _candidates_of_few(self) -> list[Entry]:
        entries = self._sorted_loose()
        if len(entries) == 1 or len(self.cuts) == 1:
            return entries
        begin, end = self.span(self.bucket_of(entries[0][4]))
        low = self.starts[begin] if begin else -1
        high = self.starts[end] if end < len(self.starts) else 1 << 62
        return [entry for entry in entries if low <= entry[4].target_tokens < high]

    def _sorted_loose(self) -> list[Entry]:
        """Return the entries of the loose requests, in service order."""
        entries = [self._entry(request) for request in self._loose.values()]
        entries.sort()
        return entries

    def _in_front(self) -> list[Entry]:
        front = self._front.values()
        bucket = self.bucket_of(next(iter(front)))
        return [self._entry(request) for request in front if self.bucket_of(request) == bucket]

    def lengths(self) -> list[N]:
        """Return the shortest length of every bucket."""
        return [self.starts[cut] for cut in self.cuts]

    def span(self, bucket: N) -> tuple[N, N]:
        """Return the first bin of a bucket and the bin after its last."""
        last = bucket + 1 == len(self.cuts)
        return self.cuts[bucket], len(self.starts) if last else self.cuts[bucket + 1]

    def counts(self) -> list[N]:
        """Return the number of requests in every bucket."""
        return [self.count_bins(*self.span(bucket)) for bucket in range(len(self.cuts))]

    def count_bins(self, begin: N, end: N) -> N:
        """Return the number of requests in the bins from `begin` up to, not including, `end`."""
        if self._loose:
            self._file_all()
        return sum(self._sizes[begin:end])

    def recut(self, cuts: Sequence[N]) -> None:
        """Let the buckets begin at the bins `cuts`, ascending from 0."""
        self.cuts = list(cuts)
        self.count("moves", self.num_bucketed)

    def merge(self) -> None:
        """Make it one bucket again."""
        self.recut((0,))
        self.count("merges", 1)

    def count(self, operation: str, times: N) -> None:
        """Note bucketing operations."""
        self.operation_counts[operation] += times
        self.operations += times
