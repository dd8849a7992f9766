"""Write a trace in the form another simulator reads, so that both run the same requests.

Lengths are written as they are. What a simulator makes of them is its own: `simdistserve` runs one
decode iteration more than the output has tokens after the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sim.types import Trace
from workloads.base import Floats, bad, unknown
from workloads.write import write_plain, written_aside

US_PER_S = 1e6

BLIS_COLUMNS = {
    **dict.fromkeys(("request_id", "client_id", "tenant_id", "slo_class", "session_id"), ""),
    "round_index": 0,
    "prefix_group": "",
    "prefix_length": 0,
    "streaming": "false",
    **dict.fromkeys(("input_tokens", "output_tokens"), 0),
    **dict.fromkeys(("text_tokens", "image_tokens", "audio_tokens", "video_tokens"), 0),
    "reason_ratio": 0,
    "model": "",
    **dict.fromkeys(("deadline_us", "server_input_tokens", "arrival_time_us", "send_time_us"), 0),
    **dict.fromkeys(("first_chunk_time_us", "last_chunk_time_us", "num_chunks"), 0),
    "status": "ok",
    **dict.fromkeys(("error_message", "finish_reason"), ""),
}
"""Columns of a BLIS trace of version 2, in their order, with what stands for nothing
(inference-sim/inference-sim, sim/workload/tracev2.go)."""

BLIS_HEADER = "trace_version: 2\ntime_unit: microseconds\nmode: generated\nwarm_up_requests: 0\n"


def form_names() -> list[str]:
    """Return the names of the forms."""
    return list(_WRITERS)


def write_as(trace: Trace, path: str | Path, form: str) -> list[str]:
    """Write a trace in a form of `form_names()`; return the columns it has no place for.

    `blis` writes a second file beside `path`, the header, with the suffix `.yaml`.

    Raises:
        BadInput: unknown form, wrong suffix, no arrival times where the form needs them, or a
            place that cannot be written.
    """
    path = Path(path)
    if form not in _WRITERS:
        raise unknown("form", "form", form, form_names())
    suffix, writer = _WRITERS[form]
    if writer is None:
        write_plain(trace, path)
        return []
    if path.suffix != suffix:
        raise bad(path, f"the form {form} needs the suffix {suffix}")
    if trace.arrival_s is None:
        raise bad(path, f"the form {form} needs arrival times and the trace has none")
    writer(trace, trace.arrival_s, path)
    extra = {
        "priority": trace.priority,
        "shared prefixes": trace.prefix_group,
        "block hashes": trace.block_hashes,
    }
    return [name for name, values in extra.items() if values is not None]


def _vidur(trace: Trace, arrival_s: Floats, path: Path) -> None:
    """Columns of microsoft/vidur, vidur/request_generator/trace_replay_request_generator.py."""
    columns = {
        "arrived_at": arrival_s,
        "num_prefill_tokens": trace.input_len,
        "num_decode_tokens": trace.output_len,
    }
    _write_csv(columns, path)


def _simdistserve(trace: Trace, arrival_s: Floats, path: Path) -> None:
    """Keys of LLMServe/DistServe, simdistserve/benchmarks/simulate_dist.py; seconds."""
    rows = zip(arrival_s.tolist(), trace.input_len.tolist(), trace.output_len.tolist(), strict=True)
    entries = [{"start_time": at, "prompt_len": new, "output_len": out} for at, new, out in rows]
    with written_aside(path) as part:
        part.write_text(json.dumps(entries))


def _blis(trace: Trace, arrival_s: Floats, path: Path) -> None:
    """Write the table and its header; times in whole microseconds."""
    at_us = np.rint(arrival_s * US_PER_S).astype(np.int64)
    columns = {
        **BLIS_COLUMNS,
        "request_id": np.arange(len(trace)),
        "input_tokens": trace.input_len,
        "output_tokens": trace.output_len,
        "arrival_time_us": at_us,
        "send_time_us": at_us,
    }
    _write_csv(columns, path)
    with written_aside(path.with_suffix(".yaml")) as part:
        part.write_text(BLIS_HEADER)


def _write_csv(columns: dict[str, Any], path: Path) -> None:
    import pandas as pd

    with written_aside(path) as part:
        pd.DataFrame(columns).to_csv(part, index=False)


_WRITERS: dict[str, tuple[str, Callable[[Trace, Floats, Path], None] | None]] = {
    "plain": ("", None),
    "vidur": (".csv", _vidur),
    "simdistserve": (".json", _simdistserve),
    "blis": (".csv", _blis),
}
"""Form: (suffix of its file, writer)."""
