"""BucketServe's Algorithm 1: halve crowded buckets, go back to one bucket when few wait."""

from __future__ import annotations

from policies.parts.buckets import BucketQueue
from sim.types import N

MAX_HALVINGS: N = 12
"""No bucket is narrower than l_max / 4096, whatever `min_width`: a review stays cheap."""


class BatchLimit:
    """N_max: how many requests of a certain length a batch may hold (Eq. 1 or 6 at one length).

    Args:
        length: `up` (a bucket's upper end; the mean length for the merge test), `mean`, `lmax`, or
            a number, which is N_max itself.
        l_max: upper end of the last bucket, in tokens.
    """

    def __init__(self, length: str | N, l_max: N) -> None:
        self.fixed: N = length if isinstance(length, int) else 0
        self.by_upper = length == "up"
        self.by_mean = length == "mean"
        self.needs_mean = self.by_upper or self.by_mean
        """Whether the mean prompt length matters."""
        self.l_max = l_max
        self._m_tok: N = -1
        self._n_max: N = 0
        """N_max of prompts of `l_max` tokens, for the M_tok asked for last."""

    def of_queue(self, m_tok: N, mean_len: float) -> N:
        """Return N_max for the merge test."""
        if self.needs_mean:
            return self._at(m_tok, mean_len)
        if m_tok != self._m_tok:
            self._m_tok = m_tok
            self._n_max = self._at(m_tok, self.l_max)
        return self._n_max

    def of_bucket(self, m_tok: N, mean_len: float, upper: float) -> N:
        """Return N_max for the split test of a bucket that ends at `upper` tokens."""
        if self.by_upper:
            return self._at(m_tok, upper)
        return self._at(m_tok, mean_len if self.by_mean else self.l_max)

    def _at(self, m_tok: N, length: float) -> N:
        return self.fixed or max(1, int(m_tok // max(length, 1.0)))


class Midpoints:
    """Algorithm 1, lines 11-29, on a `BucketQueue`.

    Args:
        limit: what N_max is.
        theta: share of a bucket's requests that must be short for it to be split.
        either: also split when the share of the long ones exceeds `theta`.
        to_fixpoint: repeat the pass over all buckets until none is split.
        max_buckets: never more buckets; None for any number.
        min_width: no bucket narrower than this, in tokens.
    """

    def __init__(
        self,
        limit: BatchLimit,
        theta: float,
        either: bool,
        to_fixpoint: bool,
        max_buckets: N | None,
        min_width: N,
    ) -> None:
        self.limit = limit
        self.theta = theta
        self.either = either
        self.to_fixpoint = to_fixpoint
        self.l_max = limit.l_max
        halvings = 0
        while halvings < MAX_HALVINGS and self.l_max >= min_width << (halvings + 1):
            halvings += 1
        if max_buckets is not None:  # the deepest chain of halvings
            halvings = min(halvings, max_buckets - 1)
        self.bins: N = 1 << halvings
        self.max_buckets: N = self.bins if max_buckets is None else max_buckets

    def starts(self) -> list[N]:
        """Return the shortest length of every bin: bins as narrow as a bucket can become."""
        return [-(-self.l_max * at // self.bins) for at in range(self.bins)]

    def adjust(self, queue: BucketQueue, m_tok: N, mean_len: float) -> None:
        """Merge or split the buckets of `queue`; without effect if it has not changed since."""
        if queue.adjusted == queue.revision:
            return
        queue.adjusted = queue.revision
        if queue.num_bucketed < self.limit.of_queue(m_tok, mean_len):
            if len(queue.cuts) > 1:
                queue.merge()
            return
        while self._split_pass(queue, m_tok, mean_len) and self.to_fixpoint:
            pass

    def _split_pass(self, queue: BucketQueue, m_tok: N, mean_len: float) -> bool:
        """Test every bucket once, shortest first, but not those just made; True if any split."""
        cuts = queue.cuts
        tests = len(cuts)
        queue.count("split_tests", tests)
        bucket = 0
        for _ in range(tests):
            begin, end = queue.span(bucket)
            total = queue.count_bins(begin, end)
            upper = end * self.l_max / self.bins
            if (
                end - begin > 1
                and len(cuts) < self.max_buckets
                and total > self.limit.of_bucket(m_tok, mean_len, upper)
                and self._is_lopsided(queue.count_bins(begin, (begin + end) // 2), total)
            ):
                bucket += 1
                cuts.insert(bucket, (begin + end) // 2)
                queue.count("splits", 1)
                queue.count("moves", total)
            bucket += 1
        return bucket > tests

    def _is_lopsided(self, short: N, total: N) -> bool:
        part = max(short, total - short) if self.either else short
        return part / total > self.theta
