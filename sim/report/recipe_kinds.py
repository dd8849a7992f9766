"""The kinds of figures: who draws the panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.report.recipe_parts import (
    INK,
    Picture,
    grouped,
    half_widths,
    hollow,
    level,
    line,
    look,
    plain,
    x_axis,
)
from sim.study.paper.figure_data import ALL, BREAKDOWN, MARKS, RATIO
from sim.study.paper.figure_models import BUSY, FLOPS, PADDING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.study.paper.recipes import Figure


def _curve(picture: Picture, axes: Sequence[Axes]) -> None:
    recipe = picture.figure.recipe
    titles = {ALL: "all requests" if recipe.classes else ""} | recipe.classes
    for one, (panel, title) in zip(axes, titles.items(), strict=True):
        found = picture.panel(panel)
        for series, rows in found.items():
            line(picture, one, rows, series)
        x_axis(picture, one, [row for rows in found.values() for row in rows])
        one.set_title(title)
        if recipe.target is not None:
            level(picture, one, recipe.target, f"{recipe.target:g} %")
            one.set_ylim(0, 102)
        else:
            one.set_ylim(bottom=0)
        if recipe.ideal:
            ends = [0, max(row.x for rows in found.values() for row in rows)]
            (drawn,) = one.plot(
                ends, ends, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1
            )
            picture.keep("ideal: all completed", drawn)
            one.set_xlim(left=0)
        if panel == ALL:
            for series, points in picture.points().items():
                hollow(picture, one, points, series)
    axes[0].set_ylabel(recipe.y.label)


def _offline(picture: Picture, axes: Sequence[Axes]) -> None:
    left, right = axes
    for one, panel in ((left, ALL), (right, RATIO)):
        found = picture.panel(panel)
        for series, rows in found.items():
            line(picture, one, rows, series)
        x_axis(picture, one, [row for rows in found.values() for row in rows])
        one.set_ylim(bottom=0)
        one.yaxis.set_major_formatter(plain)
    left.set_ylabel(picture.figure.recipe.y.label)
    right.set_ylabel("BucketServe over the other")
    right.axhline(1, color=INK, linewidth=0.8)
    at = max(row.x for row in picture.rows)
    claims = [] if picture.paper is None else picture.paper.claims
    for claim in claims:
        if claim.figure == picture.figure.paper_name and claim.kind == "ratio":
            hollow(picture, right, [(at, float(claim.value or 0))], claim.of[1])


def _bars(picture: Picture, axes: Sequence[Axes]) -> None:
    recipe, found = picture.figure.recipe, picture.panel(ALL)
    places = {key: at for at, key in enumerate(recipe.groups)}
    grouped(picture, axes[0], found)
    points = picture.points()
    width = 0.8 / len(found)
    for at, series in enumerate(found):
        shift = (at - (len(found) - 1) / 2) * width
        known = [(x, y) for x, y in points.get(series, []) if x in recipe.paper_at]
        if known:
            placed = [(places[recipe.paper_at[x]] + shift, y) for x, y in known]
            hollow(picture, axes[0], placed, series)
    axes[0].set_ylabel(recipe.y.label)
    axes[0].set_ylim(0, 105)


def _breakdown(picture: Picture, axes: Sequence[Axes]) -> None:
    (one,) = axes
    found = picture.panel(ALL)
    at = range(len(found["decode"]))
    floor = [0.0] * len(found["decode"])
    for series in reversed(BREAKDOWN):
        how, rows = look(series), found[series]
        name = "prefill: running" if series == "prefill" else how.name
        bars = one.bar(
            at,
            [r.y for r in rows],
            0.62,
            bottom=floor,
            color=how.colour,
            edgecolor="white",
            hatch=how.hatch,
            linewidth=0.4,
        )
        floor = [a + r.y for a, r in zip(floor, rows, strict=True)]
        picture.keep(name, bars)
    one.set_xticks(list(at), [f"{r.x:g}" for r in found["decode"]])
    one.grid(visible=False, axis="x")
    axis = picture.figure.recipe.x
    one.set(xlabel=axis.label if axis else "", ylabel=picture.figure.recipe.y.label, ylim=(0, 100))
    one.set_title("above the bars: share of bucketing", fontsize=8, pad=16)
    for place, row in enumerate(found["bucketing"]):
        share = np.format_float_positional(row.y, precision=1, fractional=False, trim="-")
        one.annotate(
            f"{share} %",
            (place, 100),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7,
            annotation_clip=False,
        )


def _overhead(picture: Picture, axes: Sequence[Axes]) -> None:
    (one,) = axes
    for series, rows in picture.panel(ALL).items():
        line(picture, one, rows, series)
        x_axis(picture, one, rows)
        one.set_xticks([row.x for row in rows])
    for points in picture.points().values():
        hollow(picture, one, points, "bucketing")
    one.set_ylabel(picture.figure.recipe.y.label)
    one.set_ylim(bottom=0)


def _histogram(picture: Picture, axes: Sequence[Axes]) -> None:
    (one,) = axes
    recipe = picture.figure.recipe
    assert recipe.bins is not None, "the data were made with them"
    (rows,) = picture.panel(ALL).values()
    errors = half_widths(rows)
    bars = one.bar(
        [r.x for r in rows],
        [r.y for r in rows],
        recipe.bins.width,
        color="#9db8c7",
        edgecolor="white",
        linewidth=0.4,
        yerr=errors if any(errors) else None,
        error_kw={"capsize": 1.5, "elinewidth": 0.8, "ecolor": INK},
    )
    picture.keep("ours", bars)
    for points in picture.points().values():
        hollow(picture, one, points, "bucketserve")
    dashes = {"mean": (0, (5, 1.6)), "median": (0, (1.2, 1.2))}
    numbers = {}
    if picture.paper is not None and picture.figure.paper_name in picture.paper.figures:
        numbers = dict(picture.paper.figure(picture.figure.paper_name).numbers)
    for name, marks in picture.panel(MARKS).items():
        x = marks[0].x
        drawn = one.axvline(x, color="#16425b", linestyle=dashes[name], linewidth=2.4)
        picture.keep(f"our {name} {x:,.0f}", drawn)
        if name in numbers:
            value = float(numbers[name].value)
            drawn = one.axvline(value, color="#d9772b", linestyle=dashes[name], linewidth=1.6)
            picture.keep(f"the paper's {name} {value:,.0f}", drawn)
    factor = recipe.chars_per_token
    forth: Any = lambda x: x / factor  # noqa: E731
    back: Any = lambda x: x * factor  # noqa: E731
    second = one.secondary_xaxis("top", functions=(forth, back))
    second.set_xlabel("tokens", fontsize=8)
    one.set_xlabel(recipe.x.label if recipe.x else "")
    one.set_ylabel(recipe.y.label)
    one.set_xlim(0, recipe.bins.upto)
    one.set_ylim(bottom=0)
    one.xaxis.set_major_formatter(plain)
    second.xaxis.set_major_formatter(plain)


def _utilisation(picture: Picture, axes: Sequence[Axes]) -> None:
    titles = {BUSY: "busy time of the phase's pool", FLOPS: "useful FLOPs while it runs"}
    for one, (panel, title) in zip(axes, titles.items(), strict=False):
        found = picture.panel(panel)
        grouped(picture, one, found, labels=True)
        names = [row.category.lower() for row in next(iter(found.values()))]
        for series, points in picture.points().items():
            shift = -0.2 if series == "prefill" else 0.2
            placed = [(names.index(str(x)) + shift, y) for x, y in points if str(x) in names]
            hollow(picture, one, placed, series)
        one.set_title(title)
        one.set_ylim(0, 115)
    last = axes[-1]
    for series, rows in picture.panel(PADDING).items():
        line(picture, last, rows, series)
    last.set_xscale("log", base=2)
    last.xaxis.set_major_formatter(plain)
    last.set(xlabel="requests in a batch", ylabel="padded tokens [%]", ylim=(0, 115))
    last.set_title("padding of random batches")
    axes[0].set_ylabel(picture.figure.recipe.y.label)


def _one(_figure: Figure) -> int:
    return 1


def _by_class(figure: Figure) -> int:
    return 1 + len(figure.recipe.classes)


def _two(_figure: Figure) -> int:
    return 2


def _three(_figure: Figure) -> int:
    return 3


Kind = tuple[Callable[["Figure"], int], Callable[[Picture, Sequence["Axes"]], None]]
KINDS: dict[str, Kind] = {
    "curve": (_by_class, _curve),
    "offline": (_two, _offline),
    "bars": (_one, _bars),
    "breakdown": (_one, _breakdown),
    "overhead": (_one, _overhead),
    "histogram": (_one, _histogram),
    "utilisation": (_three, _utilisation),
}
"""How many panels a kind of figure has, and who draws it."""
