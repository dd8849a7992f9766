"""A run as Chrome trace events: opens in Perfetto (ui.perfetto.dev) or chrome://tracing.

One process per instance with a track of steps (spans of equal steps are one slice), a track of KV
copies and counters of queue and batch; the first requests as asynchronous slices of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.study.files import written_aside

US_PER_S = 1e6
MAX_REQUESTS = 1000
"""Requests drawn: more than a screen can show, few enough to load."""

STEPS_TRACK, SWAP_TRACK = 0, 1
PHASES = ("queued", "prefill", "decode")

Columns = Mapping[str, np.typing.NDArray[Any]]
Swap = tuple[float, float, int, int, int, str]


def write_timeline(
    path: Path,
    instances: Sequence[Mapping[str, object]],
    steps: Columns,
    swaps: Sequence[Swap],
    requests: Columns,
) -> None:
    """Write the timeline of one replication.

    Args:
        path: the file.
        instances: as `RunRecord.instances`.
        steps: columns of `steps.parquet`.
        swaps: as `RunRecord.swaps`.
        requests: columns of `requests.parquet`.
    """
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        for at, event in enumerate(_events(instances, steps, swaps, requests)):
            file.write(",\n" if at else "")
            file.write(json.dumps(event, separators=(",", ":"), allow_nan=False))
        file.write("\n]}\n")


def _events(
    instances: Sequence[Mapping[str, object]],
    steps: Columns,
    swaps: Sequence[Swap],
    requests: Columns,
) -> Iterator[dict[str, Any]]:
    for instance in instances:
        name = "instance {id} ({role}, {gpu} tp {tp})".format_map(instance)
        yield _metadata("process_name", instance["id"], STEPS_TRACK, name)
        yield _metadata("thread_name", instance["id"], STEPS_TRACK, "steps")
        yield _metadata("thread_name", instance["id"], SWAP_TRACK, "KV copies")
    yield _metadata("process_name", len(instances), 0, f"requests (first {MAX_REQUESTS})")
    yield from _steps(steps)
    for start_s, duration_s, instance_id, request_id, blocks, direction in swaps:
        args = {"request": request_id, "blocks": blocks}
        yield _slice(f"swap {direction}", instance_id, SWAP_TRACK, start_s, duration_s, args)
    yield from _requests(requests, len(instances))


def _steps(steps: Columns) -> Iterator[dict[str, Any]]:
    shown = ("n_steps", "prefill_requests", "prefill_tokens", "padded_tokens", "decode_requests",
             "kv_tokens", "queue_len")  # fmt: skip
    names = ("instance", "start_s", "duration_s", "kind", *shown)
    for row in zip(*(steps[name].tolist() for name in names), strict=True):
        instance, start_s, duration_s, kind = row[:4]
        args = dict(zip(shown, row[4:], strict=True))
        yield _slice(kind, instance, STEPS_TRACK, start_s, duration_s, args)
        yield {
            "ph": "C",
            "name": "requests",
            "pid": instance,
            "ts": start_s * US_PER_S,
            "args": {
                "waiting": args["queue_len"],
                "in batch": args["prefill_requests"] + args["decode_requests"],
            },
        }


def _requests(requests: Columns, pid: int) -> Iterator[dict[str, Any]]:
    """Yield the phases of the first requests, each inside a slice of the whole request."""
    times = ("arrival_s", "prefill_start_s", "first_token_s", "finish_s")
    shown = ("input_len", "output_len", "preemptions", "status")
    columns = [requests[n][:MAX_REQUESTS].tolist() for n in ("request_id", *times, *shown)]
    for request_id, *values in zip(*columns, strict=True):
        at_s = [t for t in values[:4] if t == t]
        args = dict(zip(shown, values[4:], strict=True))
        whole = {"cat": "request", "name": f"request {request_id}", "pid": pid, "tid": 0}
        yield {"ph": "b", **whole, "id": request_id, "ts": at_s[0] * US_PER_S, "args": args}
        for phase, start_s, end_s in zip(PHASES, at_s, at_s[1:], strict=False):
            part = {**whole, "name": phase, "id": request_id}
            yield {"ph": "b", **part, "ts": start_s * US_PER_S}
            yield {"ph": "e", **part, "ts": end_s * US_PER_S}
        yield {"ph": "e", **whole, "id": request_id, "ts": at_s[-1] * US_PER_S}


def _slice(
    name: str, pid: int, tid: int, start_s: float, duration_s: float, args: dict[str, Any]
) -> dict[str, Any]:
    times = {"ts": start_s * US_PER_S, "dur": duration_s * US_PER_S}
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, **times, "args": args}


def _metadata(what: str, pid: object, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
