"""BucketServe with boundaries from an exact dynamic programme over recent prompt lengths."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import model_validator

from policies.base import (
    Field,
    N,
    Plan,
    Request,
    View,
    WaitQueue,
    policy,
)
from policies.parts.batches import BatchConfig, BatchFormer
from policies.parts.boundaries import centroid_cuts, cheapest_cuts, geometric_starts, row_prices
from policies.parts.buckets import BucketQueue, new_counts
from policies.parts.disaggregated import Disaggregated, fcfs_batch
from policies.parts.histogram import LengthHistogram


class BucketserveOptimalConfig(BatchConfig):
    """Parameters of BucketServe with computed boundaries."""

    boundaries: Literal["dp", "centroid", "fixed"] = Field(
        "dp", description="cheapest by dynamic programme, the paper's Eq. 4, or `edges`"
    )
    num_buckets: int = Field(8, ge=1, description="buckets at most (dp, centroid)")
    edges: tuple[int, ...] = Field(
        (), description="tokens: shortest prompt of every bucket but the first (fixed)"
    )
    bins: int = Field(64, ge=2, le=4096, description="length bins of the histogram, at most")
    boundary_period_s: float = Field(30.0, gt=0, description="seconds between recomputations")
    half_life_s: float = Field(
        30.0, gt=0, description="seconds after which an arrival counts half in the histogram"
    )

    @model_validator(mode="after")
    def _edges_make_buckets(self) -> BucketserveOptimalConfig:
        if (self.boundaries == "fixed") != bool(self.edges):
            raise ValueError(
                f"boundaries={self.boundaries!r} with edges={self.edges}: edges go "
                "with boundaries=fixed"
            )
        ends = (0, *self.edges, self.l_max)
        if any(low >= high for low, high in pairwise(ends)):
            raise ValueError(f"edges={self.edges} must ascend between 0 and l_max={self.l_max}")
        return self


@policy("bucketserve-optimal")
class BucketserveOptimal(Disaggregated):
    """BucketServe whose buckets are computed from a histogram of recent prompt lengths.

    Idea: midpoints know nothing of the lengths that arrive, and one bucket at low load pads most.
    Boundaries that minimise the expected price of padded batches are cheap to compute exactly.

    Decision rule: boundaries are recomputed before a batch is formed of several waiting requests
    when `boundary_period_s` has passed since the last time at the latest arrival, or as many
    requests have arrived since as had before. `dp` cuts the histogram (an arrival counts half after
    `half_life_s`) into at most `num_buckets` buckets of least total price; a request costs one row
    of the largest safe batch padded to the longest bin of its bucket, as the instance's cost model
    prices it. Nothing is merged. `centroid` takes the paper's Eq. 4, `fixed` takes `edges`. All
    else is as in `bucketserve`: bucket of the request that stands first, order, memory rule,
    classes, decode.

    Deviations and assumptions: not in the paper, which declines computed boundaries as too costly
    at run time. The half-life is that of AIBrix's gateway (issue 1817), the period is as long
    (ours: 2 to 60 s make no difference to waits and padding under constant traffic); 128 bins would
    save 0.2 % of the prefill time of the 80:20 mixture and take four times as long. Rows are priced
    in full batches (`safe_fraction` of the KV room, `max_batch_tokens`, `max_batch_size`), so the
    price of a smaller batch's fixed part is underrated. Bins grow in ratio, the last ends at
    `l_max`. Each instance has its own histogram of what it was sent, and boundaries of its own.
    Eq. 4 is applied once to equally heavy buckets: a centroid is no upper bound of its own bucket,
    and repeating it collapses them. Otherwise as `bucketserve`.

    Complexity: as `bucketserve`, plus O(num_buckets * bins^2) per recomputation (some 0.1 ms at 8
    and 64), and `bins` prices once per instance.

    Reference: Zheng et al., "BucketServe", 2025, arXiv:2507.17120 (buckets, Eq. 4); the dynamic
    programme is the usual one for optimal histograms: Jagadish et al., VLDB 1998.
    """

    Config = BucketserveOptimalConfig
    assumes = "prompt lengths, prefill price"

    def __init__(self, config: BucketserveOptimalConfig) -> None:
        super().__init__(config.max_num_seqs, config.ready_threshold, config.padded)
        self.former = BatchFormer(config)
        self.boundaries: str = config.boundaries
        self.num_buckets: N = config.num_buckets
        self.l_max: N = config.l_max
        self.starts = geometric_starts(config.l_max, config.bins)
        if config.boundaries == "fixed":
            self.starts = [0, *config.edges]
        self.uppers = [start - 1 for start in self.starts[1:]] + [config.l_max]
        """Longest prompt of every bin."""
        self.boundary_period_s = config.boundary_period_s
        self.half_life_s = config.half_life_s
        self.counts: dict[str, N] = new_counts()
        """Bucketing operations of the run, over all instances."""
        self.operation_counts = self.counts
        self.charges_overhead = config.overhead_us_per_op > 0

    def new_queue(self) -> WaitQueue:
        """Return an empty queue with a histogram of its own."""
        if self.boundaries == "fixed":
            queue = BucketQueue(self.starts, self.former.entry, self.counts)
            queue.recut(range(len(self.starts)))
            return queue
        histogram = LengthHistogram(self.starts, self.boundary_period_s, self.half_life_s)
        return BucketQueue(self.starts, self.former.entry, self.counts, histogram)

    def plan(self, view: View) -> Plan | None:
        """Recompute the boundaries if they are due, then form a batch, or go on decoding."""
        batch: list[Request] = []
        if view.num_waiting and not view.swapped:
            batch = self._batch(view)
        return self.next_step(view, batch)

    def overhead_s(self, view: View) -> float:
        """Seconds of bucketing since the last batch left, at `overhead_us_per_op`."""
        assert isinstance(view.waiting, BucketQueue)
        return self.former.overhead_s(view.waiting)

    def _batch(self, view: View) -> list[Request]:
        if view.role == "decode":  # preempted requests, recomputed where they were
            return fcfs_batch(view, self.l_max, self.max_num_seqs)
        queue = view.waiting
        assert isinstance(queue, BucketQueue)
        only = queue.only()
        if only is not None:
            return self.former.alone(view, only)
        if queue.histogram is not None and queue.histogram.due:
            self._recompute(view, queue, queue.histogram)
        rows = 1 << 62 if view.role == "prefill" else self.max_num_seqs - len(view.running)
        return self.former.batch(view, queue, rows)

    def _recompute(self, view: View, queue: BucketQueue, histogram: LengthHistogram) -> None:
        """Let the buckets be those of the histogram as it is now."""
        if self.boundaries == "centroid":
            middles = [
                (start + upper) / 2 for start, upper in zip(self.starts, self.uppers, strict=True)
            ]
            cuts = centroid_cuts(histogram.weights.tolist(), middles, self.num_buckets)
        else:
            if not len(histogram.prices):
                rows = [self.former.full_rows(view, upper) for upper in self.uppers]
                histogram.prices = row_prices(view.cost, self.uppers, rows)
            cuts = cheapest_cuts(histogram.weights, histogram.prices, self.num_buckets)
        histogram.settle()
        queue.count("programmes", 1)
        if cuts != queue.cuts:
            queue.recut(cuts)
