"""Plain CSV of a measured run, and the ids of its prompts' blocks beside it.

Columns `prompt_tokens output_tokens arrived_at_s` (also `input_len output_len arrival_s`), the
measured `ttft_ms` and `latency_ms` (or `tpot_ms`), and optionally `run`, `request`, `prefix_group`
and `shared_prefix_tokens`. Only an engine knows how long a request queued: a table with `queue_ms`
is by the engine's clock, unless `engine.ttft_clock` says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.study.fidelity.measured import Floats, Ints, Measured, latencies_ms
from sim.types import BadInput, Trace

if TYPE_CHECKING:
    import pandas as pd

NAMES = {
    "arrival_s": ("arrived_at_s", "arrival_s"),
    "input_len": ("prompt_tokens", "input_len"),
    "output_len": ("output_tokens", "output_len"),
    "ttft_ms": ("ttft_ms",),
}
ROUNDING_MS = 0.5
"""A latency may be so much below its TTFT, ms: files round."""

BLOCK_TOKENS = 16
"""Tokens of a block of the side file (vLLM's default)."""


def read_frame(path: Path) -> pd.DataFrame:
    """Return a CSV (gzip or not) as it is."""
    import pandas as pd

    try:
        return pd.read_csv(path, compression="gzip" if _is_gzip(path) else None)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise BadInput(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None


def one_run(path: Path, frame: pd.DataFrame, run: str | None) -> tuple[pd.DataFrame, str]:
    """Return the rows of one run and its name; a table without `run` is one run."""
    if "run" not in frame:
        if run is not None:
            raise BadInput(f"--run {run}: {path} has no column 'run'")
        return frame, path.name.split(".")[0]
    there = [str(name) for name in dict.fromkeys(frame["run"])]
    if run is None and len(there) > 1:
        raise BadInput(f"{path}: {len(there)} runs; choose one with --run: {', '.join(there)}")
    chosen = there[0] if run is None and there else run
    if chosen not in there:
        raise BadInput(f"--run {chosen}: not in {path}; valid: {', '.join(there)}")
    return frame[frame["run"].astype(str) == chosen], str(chosen)


def read_table(path: Path, run: str | None = None) -> Measured:
    """Read one run of a table; rows without a measured TTFT are left out and counted.

    Raises:
        BadInput: a column is missing, or a value is impossible.
    """
    frame, name = one_run(path, read_frame(path), run)
    columns = _columns(path, frame)
    n = len(frame)
    done = ~np.isnan(columns["ttft_ms"])
    if not done.any():
        raise BadInput(f"{path}: no row has a ttft_ms; nothing to compare")
    columns = {key: values[done] for key, values in columns.items()}
    rows = np.flatnonzero(done) + 1
    _check(path, columns, rows)
    order = np.argsort(columns["arrival_s"], kind="stable")
    columns = {key: values[order] for key, values in columns.items()}
    inputs, outputs = (columns[key].astype(np.int64) for key in ("input_len", "output_len"))
    left_out = n - int(done.sum())
    notes = (f"{left_out} rows without ttft_ms left out: the load was higher",) if left_out else ()
    trace = Trace(
        inputs,
        outputs,
        columns["arrival_s"] - columns["arrival_s"][0],
        sources=("measured",),
        notes={"read": n, "dropped": left_out, "request": _ids(frame, done, order)},
    )
    measured = Measured(
        path=path,
        name=name,
        trace=trace,
        latency_ms=latencies_ms(columns["ttft_ms"], columns["e2e_ms"], outputs),
        hints={"run": name, **_hints(frame)},
        clock="engine" if "queue_ms" in frame else None,
        notes=notes,
    )
    if "prefix_group" in columns and "prefix_len" in columns:
        return measured.with_groups(columns["prefix_group"], columns["prefix_len"])
    return measured


def read_prefix_blocks(path: Path, measured: Measured) -> Measured:
    """Return the run with the block ids of a side file (`run request block_ids`).

    The lists hold the leading blocks that other requests have too; the rest is nobody else's.

    Raises:
        BadInput: another run, an unknown request, or more blocks than the prompt has.
    """
    frame = read_frame(path)
    missing = [name for name in ("request", "block_ids") if name not in frame]
    if missing:
        raise BadInput(f"{path}: no column '{missing[0]}'; has {', '.join(map(str, frame))}")
    frame, _ = one_run(path, frame, measured.name if "run" in frame else None)
    position = {request: at for at, request in enumerate(measured.trace.notes["request"])}
    shared: list[tuple[int, ...]] = [()] * len(measured.trace)
    for request, ids in zip(frame["request"], frame["block_ids"], strict=True):
        at = position.get(str(request))
        if at is None:
            raise BadInput(f"{path}: request {request} is not in {measured.path}")
        blocks = _ids_of(path, request, ids)
        full = int(measured.trace.input_len[at]) // BLOCK_TOKENS
        if len(blocks) > full:
            raise BadInput(
                f"{path}: request {request} lists {len(blocks)} blocks of {BLOCK_TOKENS} tokens, "
                f"its prompt has {full}"
            )
        shared[at] = blocks
    note = f"block ids of {len(frame)} requests from {path.name}"
    return measured.with_blocks(shared, path, note)


def _columns(path: Path, frame: pd.DataFrame) -> dict[str, Floats]:
    there = ", ".join(map(str, frame.columns[:16]))
    columns = {}
    for field, names in NAMES.items():
        name = next((name for name in names if name in frame), None)
        if name is None:
            raise BadInput(f"{path}: no column '{names[0]}'; has {there}")
        columns[field] = _numbers(path, frame, name)
    if "latency_ms" in frame:
        columns["e2e_ms"] = _numbers(path, frame, "latency_ms")
    elif "tpot_ms" in frame:
        gaps = columns["output_len"] - 1
        columns["e2e_ms"] = columns["ttft_ms"] + _numbers(path, frame, "tpot_ms") * gaps
    else:
        raise BadInput(f"{path}: no column 'latency_ms' (or 'tpot_ms'); has {there}")
    for field, name in (("prefix_group", "prefix_group"), ("prefix_len", "shared_prefix_tokens")):
        if name in frame:
            columns[field] = _numbers(path, frame, name)
    return columns


def _numbers(path: Path, frame: pd.DataFrame, name: str) -> Floats:
    import pandas as pd

    values = pd.to_numeric(frame[name], errors="coerce")
    garbled = values.isna() & frame[name].notna()
    if garbled.any():
        at = int(np.argmax(garbled.to_numpy()))
        raise BadInput(f"{path}: row {at + 1}: {name} is {frame[name].iloc[at]!r}; not a number")
    numbers: Floats = values.to_numpy(np.float64)
    return numbers


def _check(path: Path, columns: dict[str, Floats], rows: Ints) -> None:
    wholes = [
        (key, ~(columns[key] >= 1) | (columns[key] % 1 != 0), "a whole number, 1 or more")
        for key in ("input_len", "output_len")
    ]
    late = columns["e2e_ms"] < columns["ttft_ms"] - ROUNDING_MS
    for key, wrong, wanted in (
        *wholes,
        ("arrival_s", ~np.isfinite(columns["arrival_s"]), "a time in seconds"),
        ("ttft_ms", ~(columns["ttft_ms"] > 0), "milliseconds, above 0"),
        ("e2e_ms", ~np.isfinite(columns["e2e_ms"]), "milliseconds"),
        ("e2e_ms", late, "no less than ttft_ms"),
    ):
        if wrong.any():
            at = int(np.argmax(wrong))
            name = "latency_ms" if key == "e2e_ms" else NAMES[key][0]
            value = columns[key][at]
            raise BadInput(f"{path}: row {rows[at]}: {name} is {value:g}; expected {wanted}")


def _ids(frame: pd.DataFrame, done: Any, order: Ints) -> list[str]:
    ids = frame["request"] if "request" in frame else np.arange(len(frame))
    return [str(name) for name in np.asarray(ids)[done][order]]


def _hints(frame: pd.DataFrame) -> dict[str, str]:
    """Return what a table says about the engine: columns that hold one value."""
    wanted = {"model": "model", "gpu": "device_name", "device_name": "device_name"}
    return {
        known: str(frame[name].iloc[0])
        for name, known in wanted.items()
        if name in frame and frame[name].nunique() == 1
    }


def _ids_of(path: Path, request: Any, ids: Any) -> tuple[int, ...]:
    parts = [] if ids != ids else str(ids).removesuffix(".0").split(";")
    for part in parts:
        if not part.isdecimal():
            raise BadInput(f"{path}: request {request}: block_ids has {part!r:.20}; not an id")
    return tuple(int(part) for part in parts)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
