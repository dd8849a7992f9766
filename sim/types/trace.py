"""A workload as columns: what every reader and generator returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """Requests in arrival order.

    Attributes:
        input_len: prompt tokens, shape (n,), each >= 1.
        output_len: output tokens, shape (n,), each >= 1.
        arrival_s: seconds from the start, shape (n,), sorted ascending; None when the source has no
            arrival times and an arrival process has to supply them.
        source: index into `sources` for each request, shape (n,): the mixture component.
        sources: names of the components.
        priority: smaller is more urgent, shape (n,); None means all 0.
        task: index into `tasks`, shape (n,); None means all `online`.
        tasks: names of the tasks.
        prefix_group: requests of equal group share a prefix, -1 none, shape (n,); None none.
        prefix_len: tokens shared with the group, shape (n,); None none. 0 in a group: the request
            begins with whatever the others share (a trace may count what was there before it).
        block_hashes: per request the hash ids of its leading prompt blocks, the last of which may
            be cut short by the prompt's end; None none. Equal ids at the end of equal lists mean
            equal prompts up to there; what follows a list is nobody else's.
        hash_block_tokens: tokens of a block of `block_hashes`.
        notes: counters of what the reader did: `read`, `dropped`, `truncated`, `sorted`, and so on.
    """

    input_len: Ints
    output_len: Ints
    arrival_s: Floats | None = None
    source: Ints | None = None
    sources: tuple[str, ...] = ("trace",)
    priority: Ints | None = None
    task: Ints | None = None
    tasks: tuple[str, ...] = ("online",)
    prefix_group: Ints | None = None
    prefix_len: Ints | None = None
    block_hashes: tuple[tuple[int, ...], ...] | None = None
    hash_block_tokens: int = 16
    notes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.input_len)
