"""What a run leaves behind: one row a request, one row a span of steps, odd inter-token gaps.

Rows are packed into bytes as they happen (about 0.5 us each, no second pass over them) and become
numpy columns at the end. Times inside are integer femtoseconds until then.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sim.core.loop import steps_to_cover
from sim.types import FS_PER_S, N, Request, Trace

STATUS = ("finished", "rejected", "unfinished", "aborted")
FINISHED: Final = 0
REJECTED: Final = 1
UNFINISHED: Final = 2
ABORTED: Final = 3

LARGEST_COUNT: Final = 2**31 - 1
"""Of tokens, requests or steps in one field of a row."""

KINDS = ("prefill", "decode", "mixed", "static_prefill", "static_decode")
PREFILL: Final = 0
DECODE: Final = 1
MIXED: Final = 2
STATIC_PREFILL: Final = 3
STATIC_DECODE: Final = 4

_PACK_REQUEST: Final = struct.Struct("<iiiiiiiidddddddd").pack
_REQUEST_DTYPE = np.dtype(
    [
        ("request_id", "<i4"),
        ("emitted_tokens", "<i4"),
        ("prefill_instance", "<i4"),
        ("decode_instance", "<i4"),
        ("preemptions", "<i4"),
        ("cached_tokens", "<i4"),
        ("retries", "<i4"),
        ("status", "<i4"),
        ("arrival_s", "<f8"),
        ("deadline_s", "<f8"),
        ("prefill_start_s", "<f8"),
        ("prefill_end_s", "<f8"),
        ("transfer_start_s", "<f8"),
        ("transfer_end_s", "<f8"),
        ("first_token_s", "<f8"),
        ("finish_s", "<f8"),
    ]
)
"""A request as it is packed: from `prefill_start_s` on the times are femtoseconds still."""

_PACK_SEEN: Final = struct.Struct("<id").pack
_SEEN_DTYPE = np.dtype([("request_id", "<i4"), ("seen_s", "<f8")])

PACK_STEP: Final = struct.Struct("<dqqqqiiiiiiiiiib?").pack
"""Packs one row of `STEP_DTYPE`."""

_COUNT_AT: Final = struct.calcsize("<dqqqq")
_PACK_COUNT_INTO: Final = struct.Struct("<i").pack_into
"""Packs `n_steps` anew, `_COUNT_AT` bytes into a row."""

PACK_STATIC_DECODE: Final = struct.Struct("<dqq8xqii12xii8xib?").pack
"""The same without lead, prefill and odd gaps, which static decode steps do not have."""
STEP_DTYPE = np.dtype(
    [
        ("start_s", "<f8"),
        ("first_fs", "<i8"),
        ("increment_fs", "<i8"),
        ("lead_fs", "<i8"),
        ("kv_tokens", "<i8"),
        ("n_steps", "<i4"),
        ("instance", "<i4"),
        ("prefill_requests", "<i4"),
        ("prefill_tokens", "<i4"),
        ("padded_tokens", "<i4"),
        ("decode_requests", "<i4"),
        ("emitting", "<i4"),
        ("veterans", "<i4"),
        ("odd", "<i4"),
        ("queue_len", "<i4"),
        ("kind", "<i1"),
        ("extrapolated", "?"),
    ]
)
"""One span of `n_steps` equal-batch steps: step k (from 0) lasts first_fs + k*increment_fs.

`emitting` requests emit a token in every step and each of their gaps is the step's duration, except
in the span's first step: for `veterans` of them `lead_fs` comes on top (the batch stood still that
long), and the gaps of `odd` others are in `RunRecord.gaps_s`. `decode_requests` are the rows
charged: in a static batch finished rows may be charged without emitting. `kv_tokens` are the tokens
cached by decodes and partial prompts before the first step. `extrapolated` steps lie outside the
range the profile was fitted on.
"""


_TIMES = (
    "prefill_start_s",
    "prefill_end_s",
    "transfer_start_s",
    "transfer_end_s",
    "first_token_s",
    "finish_s",
)


class RequestLog:
    """Rows of the requests that have left the system."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._seen = bytearray()

    def seen(self, request: Request, now: int) -> None:
        """Note that the scheduler sees a request that arrived before."""
        self._seen += _PACK_SEEN(request.id, now / FS_PER_S)

    def count(self) -> N:
        """Return the number of rows."""
        return len(self._rows) // _REQUEST_DTYPE.itemsize

    def add(self, request: Request, finish_fs: int, emitted: N, status: int) -> None:
        """Append the row of `request`; times of -1 did not happen."""
        self._rows += _PACK_REQUEST(
            request.id,
            emitted,
            request.prefill_instance,
            request.decode_instance,
            request.preemptions,
            request.cached_tokens,
            request.retries + request.failures,
            status,
            request.arrival_s,
            request.deadline_s,
            request.prefill_start_fs,
            request.prefill_end_fs,
            request.transfer_start_fs,
            request.transfer_end_fs,
            request.first_token_fs,
            finish_fs,
        )

    def columns(self, trace: Trace) -> dict[str, NDArray[np.generic]]:
        """Return the columns of design section 7 (without `replication`), by request id.

        Times that did not happen are NaN.
        """
        rows = np.frombuffer(self._rows, dtype=_REQUEST_DTYPE)
        order = np.argsort(rows["request_id"], kind="stable")
        # Column by column: at a million requests, touching fresh memory is what takes the time.
        taken: dict[str, NDArray[np.generic]] = {}
        for name in _REQUEST_DTYPE.names or ():
            column = rows[name].take(order)
            if name in _TIMES:
                column /= FS_PER_S
            if name in _TIMES or name == "deadline_s":
                column[column < 0] = np.nan
            taken[name] = column
        ids = taken["request_id"]
        zero = np.zeros(len(ids), np.int64)
        columns = taken | {
            "input_len": trace.input_len[ids],
            "output_len": trace.output_len[ids],
            "source": _names(trace.source, trace.sources, ids),
            "task": _names(trace.task, trace.tasks, ids),
            "priority": zero if trace.priority is None else trace.priority[ids],
            "queued_s": self._queued_s(ids, taken["arrival_s"]),
            "status": np.array(STATUS)[taken["status"]],
        }
        return {name: columns[name] for name in COLUMNS}

    def _queued_s(
        self, ids: NDArray[np.generic], arrival_s: NDArray[np.generic]
    ) -> NDArray[np.generic]:
        """Return when the scheduler saw each request: at its arrival, unless `seen` tells."""
        if not self._seen:
            return arrival_s
        queued_s = arrival_s.copy()
        noted = np.frombuffer(self._seen, dtype=_SEEN_DTYPE)[::-1]  # the first time counts
        noted = noted[np.isin(noted["request_id"], ids)]
        queued_s[np.searchsorted(ids, noted["request_id"])] = noted["seen_s"]
        return queued_s


COLUMNS = (
    *("request_id", "arrival_s", "input_len", "output_len", "emitted_tokens", "source", "task"),
    *("priority", "deadline_s", "prefill_instance", "decode_instance", "queued_s"),
    *("prefill_start_s", "prefill_end_s", "transfer_start_s", "transfer_end_s", "first_token_s"),
    *("finish_s", "preemptions", "cached_tokens", "retries", "status"),
)
"""The columns of a request, in the order of design section 7."""


def _names(
    index: NDArray[np.int64] | None, names: tuple[str, ...], ids: NDArray[np.generic]
) -> NDArray[np.generic]:
    if index is None:
        return np.broadcast_to(np.array(names[0]), len(ids))
    named: NDArray[np.generic] = np.array(names)[index[ids]]
    return named


class StepLog:
    """Rows of spans, and the inter-token gaps no row describes."""

    def __init__(self) -> None:
        self.rows = bytearray()
        """Rows of `STEP_DTYPE`, each appended with `PACK_STEP`."""
        self.was_cut = False
        """Whether rows of no steps stand in the log."""
        self.gaps_fs: list[int] = []
        self.swaps: list[tuple[float, float, N, N, N, str]] = []

    def shorten(self, row: N, steps: N) -> None:
        """Let the row that begins at byte `row` have `steps` steps."""
        _PACK_COUNT_INTO(self.rows, row + _COUNT_AT, steps)
        if not steps:
            self.was_cut = True

    def table(self) -> NDArray[np.void]:
        """Return the spans as a structured array of `STEP_DTYPE`, by start and instance."""
        rows = self.live()
        if self.was_cut:
            rows = rows[rows["n_steps"] > 0]
        start, instance = rows["start_s"], rows["instance"]
        before, after = start[:-1], start[1:]
        if ((before < after) | ((before == after) & (instance[:-1] <= instance[1:]))).all():
            return rows
        order = np.lexsort((instance, start))
        whole = rows.view(f"V{STEP_DTYPE.itemsize}")  # numpy moves fields one by one
        return whole[order].view(STEP_DTYPE)

    def count(self) -> N:
        """Return the number of rows."""
        return len(self.rows) // STEP_DTYPE.itemsize

    def live(self) -> NDArray[np.void]:
        """Return the rows as they were appended, sharing memory with the log."""
        return np.frombuffer(self.rows, dtype=STEP_DTYPE)

    def cut(self, row: NDArray[np.void], start_fs: int, end_fs: int) -> N:
        """Take from a row of `live` the steps that had not ended before `end_fs`.

        Returns the steps that are left; `start_fs` is when the row starts, exactly.
        """
        steps, first, increment = (int(row[k]) for k in ("n_steps", "first_fs", "increment_fs"))
        ended = 0
        if end_fs > start_fs:
            ended = steps_to_cover(end_fs - start_fs, first, increment) - 1
        if ended < steps:
            steps = ended
            row["n_steps"] = ended
            self.was_cut = True
        return steps


@dataclass(frozen=True)
class Outage:
    """One instance, down from `start_s` to `end_s`.

    Attributes:
        instance: its id.
        start_s: when it failed, seconds.
        end_s: when it was up again, seconds.
        lost_s: what the step under way had taken, seconds.
        requests: how many were put back.
    """

    instance: int
    start_s: float
    end_s: float
    lost_s: float
    requests: int


@dataclass(frozen=True)
class RunRecord:
    """Everything one simulated run produced.

    Attributes:
        requests: the columns of `requests.parquet` without `replication`, by request id.
        steps: spans of steps, `STEP_DTYPE`.
        gaps_s: inter-token gaps that no span describes, seconds.
        swaps: KV blocks copied between GPU and host: (start_s, duration_s, instance, request_id,
            blocks, `in` or `out`).
        end_s: when the last request left, or the horizon.
        counters: `preemptions_recompute`, `preemptions_swap`, `oom_events`, `extrapolated_steps`,
            `swap_out_blocks`, `swap_in_blocks`, `failures` (of an instance, or of all lanes of a
            pipeline); with prefix caching `prefix_recomputed_tokens` (what preempted requests had
            to cover again) and `prefix_recovered_tokens` (those of them still cached).
        instances: per instance a dict with `id role tp gpu total_blocks block_size`.
        outages: one for each time an instance was down.
        events: SimPy events, plan calls and spans of the run: for the benchmark, never in results.
    """

    requests: dict[str, NDArray[np.generic]]
    steps: NDArray[np.void]
    gaps_s: NDArray[np.float64]
    swaps: list[tuple[float, float, N, N, N, str]]
    end_s: float
    counters: dict[str, int]
    instances: list[dict[str, object]]
    events: dict[str, int]
    outages: list[Outage] = field(default_factory=list)
