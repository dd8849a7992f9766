"""Request and step tables of a result, thinned to what a chart can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.study.statistics.clock import BY_CLIENT, Clock

Floats = NDArray[np.float64]

SHARES = np.unique(np.concatenate([np.linspace(0, 1, 161), 1 - np.geomspace(0.1, 0.001, 41)]))
"""Where distributions are drawn: evenly, and more densely towards the slowest requests."""
SLICES = 400
"""Of the time axis."""
MOMENTS = 8
"""Of a slice at which KV memory is looked at."""
COLUMNS = (
    *("replication", "arrival_s", "queued_s", "prefill_start_s", "first_token_s", "finish_s"),
    *("emitted_tokens", "status"),
)
STATIC = "static_prefill"


@dataclass(frozen=True)
class Requests:
    """The request columns of a result, all replications.

    Attributes:
        columns: by name.
        counted: who arrived after the warm-up of its replication.
        clock: whose TTFT and E2E.
    """

    columns: Mapping[str, NDArray[Any]]
    counted: NDArray[np.bool_]
    clock: Clock = BY_CLIENT

    def latencies_ms(self) -> dict[str, Floats]:
        """Return TTFT, TPOT and E2E of the requests that count; NaN: never served."""
        at = {name: values[self.counted] for name, values in self.columns.items()}
        served = at["status"] == "finished"
        ttft, e2e = (np.where(served, ms, np.nan) for ms in self.clock.latencies_ms(at))
        gaps = at["emitted_tokens"] - 1
        several = ~served | (gaps > 0)
        tpot = (e2e - ttft)[several] / np.maximum(gaps[several], 1)
        return {"ttft": ttft, "tpot": tpot, "e2e": e2e}


def read_requests(path: Path, warmups_s: Sequence[float], clock: Clock = BY_CLIENT) -> Requests:
    """Read `requests.parquet`.

    Args:
        path: of the file.
        warmups_s: of each replication.
        clock: whose latencies are asked for.
    """
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    table = pq.read_table(path, columns=list(COLUMNS))
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    warmup = np.array(warmups_s)[columns["replication"]]
    return Requests(columns, columns["arrival_s"] >= warmup, clock)


def distribution(values: Floats) -> tuple[Floats, Floats]:
    """Return values and the share of all that are not above; NaN counts as above all."""
    known = np.sort(values[~np.isnan(values)])
    at = np.ceil(SHARES * len(values)).astype(int) - 1
    inside = (at >= 0) & (at < len(known))
    return known[at[inside]], SHARES[inside]


def waiting(requests: Requests, abort_after_s: float | None) -> tuple[Floats, Floats]:
    """Return, in the first replication, the most requests that waited in each slice of time.

    They wait from their arrival to the start of their prefill.
    """
    columns = requests.columns
    mine = (columns["replication"] == 0) & (columns["status"] != "rejected")
    arrival, begin = columns["arrival_s"][mine], columns["prefill_start_s"][mine]
    end_s = float(np.nanmax([arrival.max(initial=0.0), *columns["finish_s"][mine], 0.0]))
    patience = np.inf if abort_after_s is None else abort_after_s
    aborted = columns["status"][mine] == "aborted"
    begin = np.where(np.isnan(begin), np.where(aborted, arrival + patience, end_s), begin)
    begin = np.minimum(begin, end_s)
    times = np.concatenate([arrival, begin])
    change = np.concatenate([np.ones(len(arrival)), -np.ones(len(begin))])
    order = np.lexsort((-change, times))
    times, depth = times[order], np.cumsum(change[order])
    edges = np.linspace(0, end_s, SLICES + 1)
    before = np.concatenate([[0.0], depth])[np.searchsorted(times, edges[:-1])]
    most = before.copy()
    np.maximum.at(most, np.clip(np.searchsorted(edges, times, "right") - 1, 0, SLICES - 1), depth)
    return edges[:-1], most


def kv_share(path: Path, sizes: Sequence[float]) -> tuple[Floats, Floats] | None:
    """Return slices of time and the share of all KV memory in use, in the first replication.

    Args:
        path: of `steps.parquet`.
        sizes: tokens that fit each instance.

    Returns:
        None if the table does not go with the sizes.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path, filters=[("replication", "==", 0)])
    rows = {name: table[name].to_numpy() for name in table.column_names}
    if not len(rows["instance"]) or rows["instance"].max() >= len(sizes):
        return None
    end_s = float((rows["start_s"] + rows["duration_s"]).max())
    moments = SLICES * MOMENTS
    times = (np.arange(moments, dtype=np.float64) + 0.5) * np.float64(end_s / moments)
    used = np.zeros(moments)
    for instance in range(len(sizes)):
        mine = rows["instance"] == instance
        if mine.any():
            used += _held({name: column[mine] for name, column in rows.items()}, times)
    starts, share = times[::MOMENTS], used.reshape(SLICES, MOMENTS).mean(axis=1) / sum(sizes)
    return starts, share


def _held(rows: Mapping[str, NDArray[Any]], times: Floats) -> Floats:
    """Return the tokens that one instance held at the times; none between its steps."""
    order = np.argsort(rows["start_s"], kind="stable")
    at = {name: column[order] for name, column in rows.items()}
    last = np.searchsorted(at["start_s"], times, "right") - 1
    at = {name: column[np.maximum(last, 0)] for name, column in at.items()}
    elapsed = times - at["start_s"]
    running = (last >= 0) & (elapsed < at["duration_s"])
    share = elapsed / np.where(at["duration_s"] > 0, at["duration_s"], 1)
    prompts = np.where(at["kind"] == STATIC, at["padded_tokens"], at["prefill_tokens"])
    grown = at["decode_requests"] * np.ceil(share * at["n_steps"])
    return np.where(running, at["kv_tokens"] + prompts + grown, 0.0)
