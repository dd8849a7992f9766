"""Fill in performance.md: the table of all forms, and the picture of where the time goes.

`make performance`; `python docs/performance.py --profile` measures the profile alone and `--draw`
draws docs/img/performance.png anew from the figures beside it.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from performance_profile import DATA, OWN, POLICIES, collect

from sim.study import forms
from sim.study.provenance import git_revision

PAGE = Path(__file__).parent / "performance.md"
PICTURE = DATA.with_suffix(".png")
BEGIN, END = "<!-- table: make performance -->", "<!-- end of table -->"
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "legend.frameon": False,
}
BARS = ({"color": "#16425b"}, {"color": "#e8b08a", "edgecolor": "black", "linewidth": 0.5})
TITLES = {
    "interpreted": ("interpreted, fast loop", "share of the samples, %"),
    "compiled": ("all compiled, fast loop", "share of the instructions, %"),
}

Row = dict[str, str]


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=forms.ROUNDS)
    parser.add_argument("--site", type=Path, default=forms.SITE)
    parser.add_argument("--profile", action="store_true", help="the profile and its picture only")
    parser.add_argument("--draw", action="store_true", help="the picture only, from the figures")
    options = parser.parse_args()
    if not (options.profile or options.draw):
        fill_table(options.site.resolve(), options.rounds)
    if not options.draw:
        collect(options.site.resolve())
    draw()
    print(f"wrote {PICTURE}")


def fill_table(site: Path, rounds: int) -> None:
    """Measure all forms and write the table into the page."""
    rows = forms.measure_forms(site, rounds, large=True)
    made = (
        f"{datetime.now(UTC):%Y-%m-%d}, revision {git_revision() or 'unknown'}, Python "
        f"{platform.python_version()}, {platform.machine()}, fastest of {rounds} turns of "
        "each form (a million requests: one turn)"
    )
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{forms.table(rows)}\n\n{made}.\n\n{END}{after}")
    print(f"wrote {PAGE}")


def draw() -> None:
    """Draw the shares of the parts, one panel a form."""
    with DATA.open() as file:
        rows = list(csv.DictReader(file))
    there = [form for form in TITLES if any(row["form"] == form for row in rows)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.8), layout="constrained")
        panels = figure.subplots(1, len(there), squeeze=False)[0]
        for axes, form in zip(panels, there, strict=True):
            _panel(axes, form, [row for row in rows if row["form"] == form])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def _panel(axes: Axes, form: str, rows: Sequence[Row]) -> None:
    """Draw a form: the modules' own parts, largest first, then what Python itself does."""
    shares = {(row["policy"], row["part"]): 100 * float(row["share"]) for row in rows}
    parts = sorted(
        {row["part"] for row in rows},
        key=lambda part: (
            part.startswith(OWN),
            part == f"{OWN}other",
            -sum(shares.get((label, part), 0.0) for label in POLICIES),
        ),
    )
    for index, (label, style) in enumerate(zip(POLICIES, BARS, strict=True)):
        at = [place + (index - 0.5) * 0.4 for place in range(len(parts))]
        widths = [shares.get((label, part), 0.0) for part in parts]
        bars = axes.barh(at, widths, 0.38, label=label, **style)
        shown = [f"{shares[label, part]:.0f}" if (label, part) in shares else "" for part in parts]
        axes.bar_label(bars, shown, padding=2, fontsize=6)
    axes.set_yticks(range(len(parts)), parts)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    title, unit = TITLES[form]
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(unit)


if __name__ == "__main__":
    main()
