"""Static batching: whole batches, run to completion."""

from __future__ import annotations

from itertools import islice
from typing import Literal

from policies.base import (
    Config,
    Field,
    N,
    Plan,
    Policy,
    RunToCompletion,
    View,
    Wait,
    policy,
)


class StaticConfig(Config):
    """Parameters of static batching."""

    max_batch_size: int = Field(
        10, ge=1, description="requests in a batch at most (UELLM's engine: 10)"
    )
    fill_timeout_s: float = Field(
        0.0, ge=0, description="seconds the oldest request waits for a full batch; 0: never"
    )
    padded: bool = Field(True, description="pad prompts to the longest of the batch")
    release: Literal["together", "each"] = Field(
        "together", description="when a finished row's result leaves"
    )
    finished_rows: Literal["compute", "skip"] = Field(
        "compute", description="whether finished rows are charged until the batch ends"
    )


@policy("static")
class Static(Policy):
    """Static (request-level) batching, as FasterTransformer or a plain `generate` loop does it.

    Idea: when the engine is idle, take up to `max_batch_size` requests first come first served,
    prefill them together and decode until the longest output is done; nothing joins meanwhile.

    Decision rule: a batch starts when it is full, or when the oldest waiting request has waited
    `fill_timeout_s` (0: at once).

    Out of memory: KV grows optimistically, as in a HuggingFace loop. When the blocks do not
    suffice, the engine loses the batch and restarts; the requests come back to the head of the
    queue, and each such event halves the size of the batch that its oldest request forms.

    Deviations and assumptions: Vidur reserves the maximum length for every row, which cannot run
    out of memory and batches fewer; reservation here is by actual growth. Halving after an
    out-of-memory event is our assumption for what an operator does.

    Complexity: O(batch) per batch.

    Reference: Yu et al., "Orca", OSDI 2022 (the baseline it describes).
    """

    Config = StaticConfig
    assumes = "nothing"
    synchronous = "runs static batches"

    def __init__(self, config: StaticConfig) -> None:
        self.max_batch_size: N = config.max_batch_size
        self.fill_timeout_s = config.fill_timeout_s
        self.padded = config.padded
        self.release = config.release
        self.finished_rows = config.finished_rows

    def plan(self, view: View) -> Plan | None:
        """Form a batch from the head of the queue, or wait for more requests."""
        head = next(iter(view.waiting), None)
        if head is None:
            return None
        size = max(self.max_batch_size >> head.retries, 1)
        batch = list(islice(view.waiting, size))
        due_s = head.arrival_s + self.fill_timeout_s
        if len(batch) < size and view.now_s < due_s:
            return Wait(due_s)
        return RunToCompletion(batch, self.padded, self.release, self.finished_rows)
