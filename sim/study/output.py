"""The folder of a result (design section 7); the same config and seed give the same bytes.

Wall times and memory go to `timing.json` only, the one file that differs from run to run.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

from sim.core.records import KINDS, RunRecord
from sim.study.files import output_folder, write_json, write_text, written_aside
from sim.study.provenance import config_text
from sim.study.run import Comparison, StudyResult
from sim.study.statistics.metrics import span_seconds

BYTES_PER_KIB = 1024
NAMES = ("source", "task", "status", "kind")
"""Columns of few distinct strings."""

Columns = Mapping[str, np.typing.NDArray[Any]]


def write_result(result: StudyResult, folder: Path) -> None:
    """Write everything about one policy's replications to a folder."""
    output_folder(folder)
    write_text(folder / "config.yaml", config_text(result.experiment, result.setup))
    write_json(folder / "summary.json", summary_of(result))
    _write_parquet(result, folder / "requests.parquet", lambda record: record.requests)
    if result.experiment.run.steps:
        _write_parquet(result, folder / "steps.parquet", step_columns)
    write_json(folder / "timing.json", _timing(result))


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write each policy's folder, by label, and `comparison.json`."""
    for result in comparison.results:
        write_result(result, folder / result.choice.label)
    write_json(folder / "comparison.json", comparison_of(comparison))


def summary_of(result: StudyResult) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    cluster = result.experiment.cluster
    return {
        "policy": result.choice.name,
        "label": result.choice.label,
        "model": cluster.model,
        "gpu": cluster.gpu,
        "num_gpus": result.setup.gpus,
        "num_instances": len(result.setup.instances),
        **power_of(result),
        **result.summary,
        "notes": list(result.notes),
        "replications": result.summaries,
    }


def power_of(result: StudyResult) -> dict[str, Any]:
    """Return `power`, the section of the config, if energy was asked for."""
    asked = result.experiment.power
    return {} if asked is None else {"power": asked.model_dump(mode="json")}


def comparison_of(comparison: Comparison) -> dict[str, Any]:
    """Return the content of `comparison.json`."""
    return {
        "baseline": comparison.baseline,
        "policies": {r.choice.label: summary_of(r) for r in comparison.results},
        "differences": comparison.differences,
        "rankings": comparison.rankings,
    }


def step_columns(record: RunRecord) -> dict[str, np.typing.NDArray[Any]]:
    """Return the columns of `steps.parquet` without `replication`."""
    rows = record.steps
    return {
        "instance": rows["instance"],
        "start_s": rows["start_s"],
        "n_steps": rows["n_steps"],
        "duration_s": span_seconds(rows),
        "kind": np.array(KINDS)[rows["kind"]],
        "prefill_requests": rows["prefill_requests"],
        "prefill_tokens": rows["prefill_tokens"],
        "padded_tokens": rows["padded_tokens"],
        "decode_requests": rows["decode_requests"],
        "kv_tokens": rows["kv_tokens"],
        "queue_len": rows["queue_len"],
    }


def peak_rss_bytes() -> int:
    """Return the largest memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIB


def _write_parquet(
    result: StudyResult, path: Path, columns_of: Callable[[RunRecord], Columns]
) -> None:
    """Write a table, one row group a replication."""
    with written_aside(path) as aside:
        writer: pq.ParquetWriter | None = None
        for replication in result.replications:
            table = _table(replication.index, columns_of(replication.record))
            if writer is None:
                writer = pq.ParquetWriter(aside, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _table(replication: int, columns: Columns) -> pa.Table:
    rows = len(next(iter(columns.values())))
    arrays = {"replication": pa.array(np.full(rows, replication, np.int64))}
    for name, values in columns.items():
        array = pa.array(values)
        arrays[name] = array.dictionary_encode() if name in NAMES else array
    return pa.table(arrays)


def _timing(result: StudyResult) -> dict[str, Any]:
    return {
        "cpu_s": [r.cpu_s for r in result.replications],
        "events": [r.record.events for r in result.replications],
        "peak_rss_bytes": peak_rss_bytes(),
    }
