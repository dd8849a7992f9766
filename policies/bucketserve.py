"""BucketServe: prompts of similar length are prefilled together, in buckets halved at midpoints."""

from __future__ import annotations

from typing import Annotated, Literal

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
from policies.parts.buckets import BucketQueue, new_counts
from policies.parts.disaggregated import Disaggregated, fcfs_batch
from policies.parts.midpoint import BatchLimit, Midpoints
from sim.types import Snapshot


class BucketserveConfig(BatchConfig):
    """Parameters of BucketServe."""

    theta: float = Field(
        0.5, ge=0, le=1, description="share of a bucket below its midpoint that has it split"
    )
    split_side: Literal["short", "either"] = Field(
        "short", description="which half may exceed theta: the short one, or either"
    )
    to_fixpoint: bool = Field(False, description="repeat the split pass until nothing changes")
    max_buckets: int | None = Field(8, ge=1, description="buckets at most; null: any number")
    min_width: int = Field(1, ge=1, description="tokens: no bucket is narrower")
    nmax_length: Literal["up", "mean", "lmax"] | Annotated[int, Field(ge=1)] = Field(
        "lmax",
        description="prompt length N_max is computed for: a bucket's upper end (mean to merge), "
        "the monitor's mean, l_max; a number is N_max itself",
    )
    monitor_period_s: float = Field(0.1, gt=0, description="seconds between monitor samples")
    monitor_delay_s: float = Field(0.0, ge=0, description="seconds until a sample arrives")
    mean_half_life_s: float = Field(
        30.0, gt=0, description="seconds after which an arrival counts half in the mean length"
    )


@policy("bucketserve")
class Bucketserve(Disaggregated):
    """Dynamic batching in buckets of similar prompt length, on separate prefill and decode pools.

    Idea: a padded prefill batch costs rows times longest prompt. Waiting prompts are kept in length
    intervals (buckets), and a batch takes from one bucket only, so that little is padded.

    Decision rule (Algorithm 1). Buckets are reviewed before a batch is formed, once after every
    change of the queue (not if one request waits in one bucket). If fewer than N_max requests wait,
    one bucket holds all. Else each bucket with more than N_max requests, of which more than `theta`
    are shorter than its midpoint, is halved there. The batch is then taken from the bucket of the
    request that stands first, in order, while the batch fits: rows times longest (Eq. 1, `padded`)
    or the sum of lengths (Eq. 6, `sum`) at most `safe_fraction` of the tokens free now (Eq. 5).
    First stands, online, the earliest arrival; offline the shortest prompt (`sjf`, requests/s) or
    longest (`ljf`, tokens/s). N_max = floor(M_tok / length), at least 1, with M_tok =
    `safe_fraction` of the instance's KV room, which a profile gives as what weights and activations
    leave.
    The P/D scheduler is first come first served: a batch is formed when the prefill instance is
    free and starts at once, so no formed batch ever queues. Prefilled prompts hold their blocks
    until a decode instance pulls them, as in `distserve`; it decodes continuously.

    Deviations and assumptions (UNKNOWN in the paper unless said otherwise):
      * `nmax_length: lmax` is the default of our planning study; the literature notes leave open
        which length the test uses. N_max only steers the buckets; batches are limited by memory,
        `max_batch_tokens` and `max_batch_size` (none by default).
      * `nmax_rule: auto` counts as the engine pads; the paper mixes Eq. 1 and Eq. 6.
      * N_max and batches go by the memory of the prefill instance; a full decode pool leaves
        prompts on the prefill side (back-pressure), there is no admission check of its own.
      * n_total == N_max splits; one pass per review unless `to_fixpoint`, halves are not tested
        again in it; at most `max_buckets` 8 buckets (the largest number the paper plots); `l_max`
        is the model's 4,096 (a second reading says 1,024). Longer prompts stay in the last bucket
        and are charged in full.
      * The mean length comes from the Global Monitor's arrivals, weighted by `mean_half_life_s`;
        before any arrived, from the queue. The monitor only runs if `nmax_length` needs it. Free
        memory is read live: the monitor's copy would be older.
      * Requests of task `offline` come after all others; smaller `priority` first, strictly, then
        `order` (`offline_order`). A batch may be filled up with lower classes of its bucket. No
        ageing, no waiting for fuller batches, no preemption of prefills.
      * A prompt that exceeds the held-back share runs when it is alone on the instance. Preempted
        prompts stand in front and are batched among themselves, by bucket.
      * `padded` prefills are an assumption about the engine; decode swaps out its last request.
      * `overhead_us_per_op` times `operation_counts` is what bucketing would cost; see
        `overhead_s`. Moves are counted as Algorithm 1 makes them; this queue makes none.
      * On a `mixed` instance waiting prompts that fit go before decode steps (ours, an ablation).

    Complexity: push and remove O(log n); review O(bins), bins being at most 2^(max_buckets - 1),
    l_max / min_width and 4,096; a batch of m requests O(m log bins + bins in use).

    Reference: Zheng, Xu, Song, Ye, "BucketServe: Bucket-Based Dynamic Batching for Smart and
    Efficient LLM Inference Serving", 2025, arXiv:2507.17120. BibTeX key: zheng2025bucketserve.
    """

    Config = BucketserveConfig
    assumes = "prompt lengths"

    def __init__(self, config: BucketserveConfig) -> None:
        super().__init__(config.max_num_seqs, config.ready_threshold, config.padded)
        self.former = BatchFormer(config)
        self.limit = BatchLimit(config.nmax_length, config.l_max)
        self.midpoints = Midpoints(
            self.limit,
            config.theta,
            config.split_side == "either",
            config.to_fixpoint,
            config.max_buckets,
            config.min_width,
        )
        self.l_max: N = config.l_max
        self.monitor_period_s = config.monitor_period_s if self.limit.needs_mean else 0.0
        self.monitor_delay_s = config.monitor_delay_s
        self.mean_half_life_s = config.mean_half_life_s
        self.counts: dict[str, N] = new_counts()
        """Bucketing operations of the run, over all instances."""
        self.operation_counts = self.counts
        self.charges_overhead = config.overhead_us_per_op > 0
        self._arrivals = self._tokens = self._sampled_s = 0.0

    def new_queue(self) -> WaitQueue:
        """Return an empty queue in one bucket. A run begins by asking for its queues."""
        self._arrivals = self._tokens = self._sampled_s = 0.0
        return BucketQueue(self.midpoints.starts(), self.former.entry, self.counts)

    def on_monitor(self, snapshot: Snapshot) -> None:
        """Note how many requests arrived and how long they were."""
        decay = 0.5 ** ((snapshot.time_s - self._sampled_s) / self.mean_half_life_s)
        arrivals = snapshot.arrival_rate_per_s * self.monitor_period_s
        self._sampled_s = snapshot.time_s
        self._arrivals = self._arrivals * decay + arrivals
        self._tokens = self._tokens * decay + arrivals * snapshot.mean_input_len

    def mean_len(self, queue: WaitQueue) -> float:
        """Mean prompt length: the monitor's, or the queue's before anything was sampled."""
        if self._arrivals:
            return self._tokens / self._arrivals
        return queue.tokens / len(queue)

    def plan(self, view: View) -> Plan | None:
        """Review the buckets and form a batch, or go on decoding."""
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
        if only is not None and len(queue.cuts) == 1:  # no bucket to halve or to join
            return self.former.alone(view, only)
        mean_len = self.mean_len(queue) if self.limit.needs_mean else 0.0
        self.midpoints.adjust(queue, self.former.m_tok(view), mean_len)
        rows = 1 << 62 if view.role == "prefill" else self.max_num_seqs - len(view.running)
        return self.former.batch(view, queue, rows)
