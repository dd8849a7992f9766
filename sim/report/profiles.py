"""A profile for a reader: its step times by term, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sim.costs.breakdown import TERMS, Example, Parts, examples_of, parts_of, step_ms
from sim.costs.catalogue import model_named
from sim.costs.model import StepCost
from sim.costs.profile import Profile
from sim.report.fidelity import percent
from sim.report.figures import STYLE
from sim.study.files import output_file, written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#16425b", "#86b394", "#d9772b", "#5b3a6b", "#b0506a", "#9a9a9a")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++")
CONTEXTS = (256, 1024, 4096)
"""Tokens cached by each decode, of the picture's lines."""

SUFFIXES = (".png", ".pdf")
POINTS = 60


def term_table(profile: Profile) -> Table:
    """Return example steps by term, milliseconds."""
    parts = [parts_of(profile, example) for example in examples_of(profile)]
    used = [term for term in TERMS if any(step.ms[term] for step in parts)]
    table = Table("step, ms", box=SIMPLE_HEAD)
    for term in (*used, "whole step"):
        table.add_column(term, justify="right")
    table.add_column("fitted there")
    for step in parts:
        cells = [f"{step.ms[term]:.3f}" for term in used]
        table.add_row(step.example.name, *cells, f"{step.total_ms:.3f}", _fitted(profile, step))
    return table


def error_table(profile: Profile) -> Table | None:
    """Return the errors on held-out points by phase; None: the profile has none."""
    error = profile.held_out_error
    if error is None:
        return None
    table = Table("held-out error", box=SIMPLE_HEAD)
    for title in ("points", "median", "p95", "mean", "bias"):
        table.add_column(title, justify="right")
    for name, of in error.phases.items():
        sizes = (of.median_abs_frac, of.p95_abs_frac, of.mean_abs_frac)
        cells = [percent(size, signed=False) for size in sizes]
        table.add_row(name, f"{of.points:,}", *cells, percent(of.bias_frac))
    mean = percent(error.mean_abs_frac, signed=False)
    table.add_row("all", f"{error.points:,}", "", "", mean, percent(error.bias_frac))
    return table


def draw_profile(profile: Profile, path: Path) -> Path:
    """Draw a profile's step times as PNG and PDF; return the PNG's path."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    output_file(path)
    cost = StepCost(profile, model_named(profile.model))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
        stack, decode, prefill = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        _stacks(stack, [parts_of(profile, example) for example in examples_of(profile)])
        _decodes(decode, profile, cost)
        _prefills(prefill, profile, cost)
        title = f"{profile.name}: {profile.model} on {profile.gpu}, tp {profile.tp}; "
        title += f"{profile.basis}, {profile.dtype}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#444444")
        for suffix in SUFFIXES:
            dated = {"Software": None} if suffix == ".png" else {"CreationDate": None}
            with written_aside(path.with_suffix(suffix)) as aside:
                figure.savefig(aside, format=suffix[1:], metadata=dated)
    return path.with_suffix(".png")


def _fitted(profile: Profile, step: Parts) -> str:
    fitted = profile.fitted_range
    if fitted.step_tokens is None and fitted.batch is None:
        return "not published"
    return "no" if step.extrapolated else "yes"


def _stacks(axes: Axes, parts: Sequence[Parts]) -> None:
    """Draw the share of each term in each example."""
    at = np.arange(len(parts))[::-1]
    left = np.zeros(len(parts))
    for term, colour, hatch in zip(TERMS, COLOURS, HATCHES, strict=True):
        share = np.array([step.ms[term] / (step.total_ms or 1.0) for step in parts])
        if share.max() > 1e-9:
            axes.barh(
                at, share, left=left, color=colour, hatch=hatch, edgecolor="white", label=term,
                linewidth=0.0, height=0.7,
            )  # fmt: skip
            left += share
    axes.set_yticks(at, [f"{step.example.name}\n{step.total_ms:.3g} ms" for step in parts])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(title="Share of a step", xlim=(0, 1), xlabel="share")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=3, fontsize=8)


def _decodes(axes: Axes, profile: Profile, cost: StepCost) -> None:
    """Draw decode steps over the batch."""
    fitted = profile.fitted_range.batch
    most = fitted[1] if fitted else 256
    batches = np.unique(np.rint(np.geomspace(1, most, POINTS)).astype(int))
    longest = model_named(profile.model).max_length
    for context, colour, style in zip(CONTEXTS, COLOURS[::2], ("-", "--", ":"), strict=True):
        if context <= longest:
            ms = [step_ms(cost, Example("", 0, int(batch), context)) for batch in batches]
            label = f"{context:,} tokens each"
            axes.plot(batches, ms, color=colour, linestyle=style, label=label)
    axes.set(title="Decode step", xlabel="requests in the batch", ylabel="milliseconds", ylim=0)
    axes.legend(fontsize=8)


def _prefills(axes: Axes, profile: Profile, cost: StepCost) -> None:
    """Draw prefill steps of one prompt over its length; the fitted range is shaded."""
    longest = min(model_named(profile.model).max_length, 4096)
    tokens = np.unique(np.rint(np.linspace(16, longest, 2 * POINTS)).astype(int))
    ms = [step_ms(cost, Example("", int(size), 0, 0)) for size in tokens]
    axes.plot(tokens, ms, color=COLOURS[0])
    fitted = profile.fitted_range.step_tokens
    if fitted is not None:
        axes.axvspan(fitted[0], min(fitted[1], longest), color="#eef2f4", label="fitted range")
        axes.legend(fontsize=8)
    axes.set(title="Prefill step, one prompt", xlabel="prompt tokens", ylim=0, xlim=(0, longest))
