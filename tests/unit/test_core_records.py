"""Rows packed as they happen become columns."""

import numpy as np
import pytest

from sim.core.records import (
    ABORTED,
    DECODE,
    FINISHED,
    KINDS,
    PACK_STEP,
    REJECTED,
    STATIC_DECODE,
    STATUS,
    STEP_DTYPE,
    UNFINISHED,
    RequestLog,
    StepLog,
)
from sim.types import Request, Trace

TRACE = Trace(
    input_len=np.array([10, 20, 30, 40]),
    output_len=np.array([1, 2, 3, 4]),
    arrival_s=np.array([0.0, 0.5, 1.0, 1.5]),
)
SECOND = 10**15

COLUMNS = [
    *("request_id", "arrival_s", "input_len", "output_len", "emitted_tokens", "source", "task"),
    *("priority", "deadline_s", "prefill_instance", "decode_instance", "queued_s"),
    *("prefill_start_s", "prefill_end_s", "transfer_start_s", "transfer_end_s", "first_token_s"),
    *("finish_s", "preemptions", "cached_tokens", "retries", "status"),
]
"""Of `requests.parquet`, design section 7, without `replication`."""


def arrived(row: int) -> Request:
    arrival_s = float(TRACE.arrival_s[row])
    return Request(row, round(arrival_s * SECOND), arrival_s, int(TRACE.input_len[row]))


def full_row(row: int) -> Request:
    request = arrived(row)
    request.prefill_instance, request.decode_instance = 1, 2
    request.prefill_start_fs = 2 * SECOND
    request.prefill_end_fs = request.first_token_fs = 3 * SECOND
    request.preemptions, request.retries = 4, 5
    return request


def test_columns_are_those_of_the_design_in_its_order():
    log = RequestLog()
    log.add(full_row(0), 7 * SECOND, 1, FINISHED)
    columns = log.columns(TRACE)
    assert list(columns) == COLUMNS
    assert {name: column.dtype.kind for name, column in columns.items()} == {
        name: "f" if name.endswith("_s") else "U" if name in ("source", "task", "status") else "i"
        for name in COLUMNS
    }


def test_a_finished_request():
    log = RequestLog()
    log.add(full_row(1), 7 * SECOND, 2, FINISHED)
    row = {name: column.tolist() for name, column in log.columns(TRACE).items()}
    assert row["request_id"] == [1]
    assert (row["arrival_s"], row["queued_s"]) == ([0.5], [0.5])
    assert (row["input_len"], row["output_len"], row["emitted_tokens"]) == ([20], [2], [2])
    assert (row["prefill_instance"], row["decode_instance"]) == ([1], [2])
    assert (row["prefill_start_s"], row["prefill_end_s"]) == ([2.0], [3.0])
    assert (row["first_token_s"], row["finish_s"]) == ([3.0], [7.0])
    assert (row["preemptions"], row["retries"], row["cached_tokens"]) == ([4], [5], [0])
    assert (row["source"], row["task"], row["priority"]) == (["trace"], ["online"], [0])
    assert row["status"] == ["finished"]


def test_times_that_did_not_happen_are_nan():
    log = RequestLog()
    log.add(arrived(0), -1, 0, REJECTED)
    columns = log.columns(TRACE)
    for name in COLUMNS:
        if name.endswith("_s") and name not in ("arrival_s", "queued_s"):
            assert np.isnan(columns[name]).all(), name
    assert (columns["prefill_instance"][0], columns["decode_instance"][0]) == (-1, -1)


def test_time_zero_did_happen():
    request = full_row(0)
    request.prefill_start_fs = 0
    log = RequestLog()
    log.add(request, 0, 1, FINISHED)
    columns = log.columns(TRACE)
    assert (columns["prefill_start_s"][0], columns["finish_s"][0]) == (0.0, 0.0)


def test_rows_come_out_by_request_whatever_the_order_of_leaving():
    log = RequestLog()
    for row, status in ((2, ABORTED), (0, FINISHED), (3, UNFINISHED), (1, REJECTED)):
        log.add(arrived(row), -1, row, status)
    columns = log.columns(TRACE)
    assert columns["request_id"].tolist() == [0, 1, 2, 3]
    assert columns["status"].tolist() == ["finished", "rejected", "aborted", "unfinished"]
    assert columns["input_len"].tolist() == [10, 20, 30, 40]
    assert sorted(STATUS) == ["aborted", "finished", "rejected", "unfinished"]


def test_names_of_sources_and_tasks():
    trace = Trace(
        input_len=np.array([1, 1, 1]),
        output_len=np.array([1, 1, 1]),
        source=np.array([1, 0, 1]),
        sources=("alpaca", "longbench"),
        task=np.array([0, 1, 0]),
        tasks=("online", "offline"),
        priority=np.array([3, 1, 2]),
    )
    log = RequestLog()
    for row in (2, 1):
        log.add(Request(row, 0, 0.0, 1), -1, 0, UNFINISHED)
    columns = log.columns(trace)
    assert columns["source"].tolist() == ["alpaca", "longbench"]
    assert columns["task"].tolist() == ["offline", "online"]
    assert columns["priority"].tolist() == [1, 2]


def test_no_rows():
    columns = RequestLog().columns(TRACE)
    assert all(len(column) == 0 for column in columns.values())


# -- the step log -----------------------------------------------------------------------------


def log_span(
    log: StepLog,
    start_s: float,
    first_fs: int,
    steps: int,
    instance: int = 0,
    increment_fs: int = 0,
) -> None:
    rest = (0, 0, 0, 1, 1, 0, 0, 0, STATIC_DECODE, False)
    log.rows += PACK_STEP(start_s, first_fs, increment_fs, 0, 0, steps, instance, *rest)


def test_packed_spans_are_rows_of_the_documented_type():
    log = StepLog()
    log.rows += PACK_STEP(0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, DECODE, True)
    (row,) = log.table()
    assert row.dtype == STEP_DTYPE
    assert {name: row[name].item() for name in STEP_DTYPE.names} == {
        "start_s": 0.5,
        "first_fs": 1,
        "increment_fs": 2,
        "lead_fs": 3,
        "kv_tokens": 4,
        "n_steps": 5,
        "instance": 6,
        "prefill_requests": 7,
        "prefill_tokens": 8,
        "padded_tokens": 9,
        "decode_requests": 10,
        "emitting": 11,
        "veterans": 12,
        "odd": 13,
        "queue_len": 14,
        "kind": KINDS.index("decode"),
        "extrapolated": True,
    }


def test_spans_of_several_instances_are_sorted_by_start_then_instance():
    log = StepLog()
    for start_s, instance in ((0.0, 1), (0.0, 0), (2.0, 0), (1.0, 1)):
        log_span(log, start_s, SECOND, 1, instance)
    table = log.table()
    assert list(zip(table["start_s"].tolist(), table["instance"].tolist(), strict=True)) == [
        *((0.0, 0), (0.0, 1)),
        *((1.0, 1), (2.0, 0)),
    ]


@pytest.mark.parametrize(
    ("end", "left"),
    [(1.0, 0), (1.5, 0), (2.0, 0), (2.5, 1), (4.0, 1), (4.5, 2), (7.0, 2), (7.5, 3), (99.0, 3)],
)
def test_cut_drops_steps_that_had_not_ended_before(end: float, left: int):
    log = StepLog()
    log_span(log, 1.0, SECOND, 3, increment_fs=SECOND)  # ends at 2, 4 and 7
    assert log.cut(log.live()[0], SECOND, round(end * SECOND)) == left
    assert log.table()["n_steps"].tolist() == ([left] if left else [])
