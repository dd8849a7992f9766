"""`report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.show import say


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What run, compare, sweep or capacity wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Default: report.html in DIR."),
    ] = None,
) -> None:
    """Write one HTML file about a result: tables and charts, nothing loaded from elsewhere."""
    from sim.report.html.write import write_report

    path = write_report(folder, out)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
