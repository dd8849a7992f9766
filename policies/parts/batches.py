"""How BucketServe orders waiting requests and how many of a bucket fit a batch (Eq. 1, 5, 6)."""

from __future__ import annotations

from typing import Literal

from policies.base import Config, Field
from policies.parts.buckets import BucketQueue
from policies.parts.ordered import Entry
from sim.types import N, Request, View

Order = Literal["fcfs", "sjf", "ljf"]


class BatchConfig(Config):
    """Parameters that the bucket policies share."""

    l_max: int = Field(
        4096, ge=1, description="tokens: upper end of the last bucket; longer prompts belong there"
    )
    nmax_rule: Literal["auto", "padded", "sum"] = Field(
        "auto",
        description="tokens of a batch: rows x longest (Eq. 1), their sum (Eq. 6), or both"
        " as `padded` says",
    )
    safe_fraction: float = Field(
        0.9, gt=0, le=1, description="share of the free KV room a batch may fill (Eq. 5)"
    )
    max_batch_tokens: int | None = Field(
        None, ge=1, description="prompt tokens of a batch, counted by nmax_rule, at most"
    )
    max_batch_size: int | None = Field(None, ge=1, description="requests in a batch, at most")
    order: Order = Field("fcfs", description="by arrival, shortest or longest prompt first")
    offline_order: Order | None = Field(
        None, description="the same for requests of task `offline`; null: as `order`"
    )
    padded: bool = Field(True, description="pad prefill batches to their longest prompt")
    max_num_seqs: int = Field(256, ge=1, description="requests in a decode batch, at most")
    ready_threshold: float = Field(
        0.05, gt=0, le=1, description="pull while pulled prompts hold less of the decode blocks"
    )
    overhead_us_per_op: float = Field(
        0.0, ge=0, description="microseconds charged for a bucketing operation; 0: none"
    )


class BatchFormer:
    """Orders requests and forms prefill batches, as a `BatchConfig` says."""

    def __init__(self, config: BatchConfig) -> None:
        self.order: str = config.order
        self.offline_order: str = config.offline_order or config.order
        self.count_padded = config.nmax_rule == "padded" or (
            config.nmax_rule == "auto" and config.padded
        )
        self.safe_fraction = config.safe_fraction
        self.max_tokens: N = config.max_batch_tokens or 1 << 62
        self.max_size: N = config.max_batch_size or 1 << 62
        self.overhead_s_per_op = config.overhead_us_per_op * 1e-6

    def entry(self, request: Request) -> Entry:
        """Order online before offline, then by priority, then as configured."""
        offline = request.task == "offline"
        order = self.offline_order if offline else self.order
        value = request.arrival_s
        if order != "fcfs":
            value = float(request.target_tokens if order == "sjf" else -request.target_tokens)
        return (1 if offline else 0, request.priority, value, request.id, request)

    def m_tok(self, view: View) -> N:
        """Tokens that fit safely when nothing is held: the M_tok of Algorithm 1's tests."""
        return int(self.safe_fraction * (view.total_blocks * view.block_size))

    def full_rows(self, view: View, length: N) -> N:
        """Rows of `length` tokens in the largest batch when nothing is held."""
        return max(1, min(min(self.m_tok(view), self.max_tokens) // length, self.max_size))

    def batch(self, view: View, queue: BucketQueue, max_rows: N) -> list[Request]:
        """Return the longest run of the queue's candidates that fits the memory free now.

        The first request is exempt from `max_batch_tokens`, and from the held-back share of the
        memory when it has the instance to itself; else it could wait for ever.
        """
        size = view.block_size
        room = view.free_blocks - (view.growth_blocks if view.num_decoding else 0)
        budget = safe = int(self.safe_fraction * (room * size))
        if view.free_blocks == view.total_blocks:
            budget = room * size
        limit = min(safe, self.max_tokens)
        rows = min(self.max_size, max_rows)
        batch: list[Request] = []
        longest = total = 0
        for count, entry in enumerate(queue.candidates()):
            request = entry[4]
            tokens = request.target_tokens
            if tokens > longest:
                longest = tokens
            total += tokens
            need = longest * (count + 1) if self.count_padded else total
            room -= -(-tokens // size)
            if need > budget or room < 0 or count == rows:
                break
            batch.append(request)
            budget = limit
        return batch

    def alone(self, view: View, request: Request) -> list[Request]:
        """Return what `batch` would of a queue with one request: that, if it fits the memory."""
        room = view.free_blocks - (view.growth_blocks if view.num_decoding else 0)
        budget = room * view.block_size
        if view.free_blocks != view.total_blocks:
            budget = int(self.safe_fraction * budget)
        return [request] if request.target_tokens <= budget else []

    def overhead_s(self, queue: BucketQueue) -> float:
        """Seconds of bucketing since the last batch left, at `overhead_us_per_op`."""
        return self.overhead_s_per_op * (queue.operations - queue.charged)
