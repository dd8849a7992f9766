"""`bucketsim report`: one HTML file about a result's folder, with everything in it.

The same folder gives the same bytes. The page loads nothing: plotly's JavaScript is part of it, and
its content security policy forbids any request.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from sim import __version__
from sim.report.html.page import Chart, Folded, Lines, Study, Table
from sim.report.html.page_capacity import capacity_study, sizing_study
from sim.report.html.page_runs import comparison_study, run_study
from sim.report.html.page_sweep import sweep_study
from sim.study.files import output_folder, write_text
from sim.types import BadInput

NAME = "report.html"
KINDS = {
    "comparison.json": ("compare", comparison_study),
    "summary.json": ("run", run_study),
    "sweep.json": ("sweep", sweep_study),
    "capacity.json": ("capacity --attainment", capacity_study),
    "sizing.json": ("capacity --rate", sizing_study),
}
"""File of a folder -> the command that writes it, and what reads it."""


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a result's folder; return its path.

    Args:
        folder: what `run`, `compare`, `sweep` or `capacity` wrote.
        out: the file; None: `report.html` in the folder.

    Raises:
        BadInput: there is nothing to report on, or jinja2 or plotly is not installed.
    """
    path = folder / NAME if out is None else out
    if path.is_dir():
        raise BadInput(f"--out {path}: is a folder; name a file")
    text = report_html(folder)
    output_folder(path.parent)
    write_text(path, text)
    return path


def report_html(folder: Path) -> str:
    """Return the report of a result's folder."""
    studies = _studies(folder)
    try:
        import jinja2
        import plotly
    except ImportError as error:
        raise BadInput(
            f"report needs {error.name}, which is not installed: pip install 'bucketsim[report]'"
        ) from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.tests |= {
        "table": lambda block: isinstance(block, Table),
        "lines": lambda block: isinstance(block, Lines),
        "folded": lambda block: isinstance(block, Folded),
        "chart": lambda block: isinstance(block, Chart),
    }
    environment.filters["script_json"] = _script_json
    return environment.from_string(_own("report.html.j2")).render(
        studies=studies,
        version=__version__,
        css=_own("report.css"),
        javascript=_own("report.js"),
        plotly=(files(plotly) / "package_data" / "plotly.min.js").read_text(encoding="utf-8"),
    )


def _studies(folder: Path) -> list[Study]:
    """Return what a folder holds; it may be several."""
    if not folder.is_dir():
        raise BadInput(f"folder {folder}: {'is a file' if folder.exists() else 'is not there'}")
    found = [read(folder) for name, (_, read) in KINDS.items() if (folder / name).is_file()]
    if not found:
        holders = ", ".join(f"{name} ({command})" for name, (command, _) in KINDS.items())
        raise BadInput(f"folder {folder}: nothing to report on; it must hold one of {holders}")
    return found


def _script_json(data: Any) -> str:
    """Return JSON that no text in it can end the script element of."""
    from markupsafe import Markup

    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def _own(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
