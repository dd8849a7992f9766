"""What `bucketsim validate` prints as JSON and leaves in its folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from sim.study.fidelity.engine_file import Settings
from sim.study.fidelity.errors import ALL, Figure, figures
from sim.study.fidelity.fit import Fitted
from sim.study.fidelity.measured import METRICS
from sim.study.fidelity.replay import Replayed
from sim.study.files import output_folder, write_json, write_text
from sim.study.provenance import config_text

DIGITS = 6


def content_of(made: Replayed, fitted: Fitted | None = None) -> dict[str, Any]:
    """Return the one JSON object: what was compared, every figure, the notes."""
    found = figures(made)
    cluster = made.experiment.cluster
    costs = made.setup.instances[0].costs
    return {
        "kv_size_guessed": made.kv_guess,
        "result": str(made.measured.path),
        "run": made.measured.name,
        "requests": len(made.measured.trace),
        "arrivals": made.measured.arrivals,
        "model": cluster.model,
        "gpu": cluster.gpu,
        "profile": costs.profile.name,
        "num_gpu_blocks": costs.num_gpu_blocks,
        "block_size": costs.block_size,
        "ttft_clock": made.clock,
        "steps": made.steps,
        "extrapolated_steps": made.extrapolated_steps,
        "errors": _nested([f for f in found if f.band == ALL]),
        "bands": {
            name: _nested([f for f in found if f.band == name])
            for name in dict.fromkeys(f.band for f in found if f.band != ALL)
        },
        "fitted": None if fitted is None else asdict(fitted),
        "notes": list(made.notes),
    }


def _nested(found: Sequence[Figure]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for figure in found:
        entry: dict[str, Any] = {
            "measured": figure.measured,
            "simulated": figure.simulated,
            "error": figure.error,
            "unit": figure.unit,
            "n": figure.requests,
        }
        if figure.statistic == "mean":
            entry["mape"] = figure.mape
        data.setdefault(figure.metric, {})[figure.statistic] = entry
    return data


def write_validation(made: Replayed, folder: Path, fitted: Fitted | None = None) -> None:
    """Write `config.yaml validation.json figures.csv` and, paired, `requests.csv` to a folder.

    `config.yaml` runs again with `bucketsim run` where the result is a table; `requests.csv` is
    such a table.
    """
    output_folder(folder)
    write_text(folder / "config.yaml", config_text(made.experiment, made.setup))
    write_json(folder / "validation.json", content_of(made, fitted))
    write_text(folder / "figures.csv", _table(figures(made)))
    if made.measured.paired:
        write_text(folder / "requests.csv", _requests(made))


def engine_text(settings: Settings, fitted: Fitted) -> str:
    """Return an engine file: the settings of a replay and the fitted constants, with their source.

    Args:
        settings: what the engine file, the log and the command line said.
        fitted: the constants.
    """
    import yaml

    constants = {f"engine.{name}": value for name, value in fitted.values_ms.items()}
    whole = Settings(constants, dict.fromkeys(constants, "fit")).over(settings)
    data = whole.nested()
    data["about"] = {
        "fitted": {
            name: {
                "value_ms": value,
                "standard_error_ms": fitted.errors_ms[name],
                "source": fitted.provenance,
            }
            for name, value in fitted.values_ms.items()
        },
        "settings": {key: whole.origins[key] for key in whole.values if key not in constants},
    }
    head = "# Engine settings for `bucketsim validate --engine`; written by `validate --fit`.\n"
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _table(found: Sequence[Figure]) -> str:
    rows = [figure.row() for figure in found]
    return _csv(list(rows[0]), [list(row.values()) for row in rows])


def _requests(made: Replayed) -> str:
    """Return one row a request: plain columns, measured and simulated latencies."""
    trace = made.measured.trace
    columns: dict[str, Any] = {
        "request": trace.notes.get("request", range(len(trace))),
        "arrived_at_s": made.measured.arrival_s.tolist(),
        "prompt_tokens": trace.input_len.tolist(),
        "output_tokens": trace.output_len.tolist(),
    }
    names = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2el": "latency_ms"}
    for metric in METRICS:
        columns[names[metric]] = made.measured.latency_ms[metric].tolist()
    for metric in METRICS:
        columns[f"simulated_{names[metric]}"] = made.latency_ms[metric].tolist()
    return _csv(list(columns), list(zip(*columns.values(), strict=True)))


def _csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.{DIGITS + 3}g}"
    return value
