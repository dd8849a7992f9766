"""`figures`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.show import Interrupted, say

if TYPE_CHECKING:
    from sim.study.paper.numbers import Paper
    from sim.study.paper.recipes import Figure
    from sim.study.sweeps.sweep import Sweep

SAY_EVERY_S = 10.0
RECIPES = Path("results/figures")
PAPER = Path("results/reference/paper.yaml")
OUT = Path("results/out/figures")


def figures(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Such as 5d or 5d-twin; none: all.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes; default: one a processor.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Replications; default: the recipes'.")
    ] = None,
    twins: Annotated[
        bool, typer.Option("--twins/--no-twins", help="Each also on a padding-free engine.")
    ] = True,
    out: Annotated[Path, typer.Option("--out", help="Folder of tables and pictures.")] = OUT,
    recipes: Annotated[Path, typer.Option("--recipes", help="Folder of the recipes.")] = RECIPES,
    paper: Annotated[Path, typer.Option("--paper", help="The paper's numbers.")] = PAPER,
) -> None:
    """Draw figures of the paper: recipe, simulations, table, PDF and PNG; go on where it was."""
    from sim.study.paper.numbers import read_paper
    from sim.study.paper.recipes import merged, plan_figures

    planned = plan_figures(names or (), recipes, seeds, twins)
    known = read_paper(paper) if paper.exists() else None
    if known is None:
        say(f"note: {paper} is not there: drawn without the paper's points")
    whole = merged(planned)
    try:
        failed = [] if whole is None else _simulate(whole, out, jobs)
        _draw([figure for figure in planned if not figure.tasks.keys() & failed], known, out)
    except KeyboardInterrupt:
        raise Interrupted(f"what is finished is in {out}, the same command goes on") from None
    if failed:
        from sim.types.errors import SimulationError

        raise SimulationError(
            f"{len(failed)} tasks failed (listed in {out}/failed.json); their figures are not "
            "drawn, the same command runs them again"
        )


def _simulate(whole: Sweep, out: Path, jobs: int | None) -> list[str]:
    """Run the tasks that have no shard yet; return those that failed."""
    from sim.study.sweeps.backends import open_backend
    from sim.study.sweeps.sweep import run_sweep

    workers = open_backend("local", None, jobs)
    teller = _Teller(whole)
    try:
        done = run_sweep(whole, out, workers, resume=True, progress=teller)
    finally:
        workers.close()
    for path, why in done.set_aside.items():
        say(f"note: corrupt shard set aside as {path} and run again: {why}")
    teller.end(done.ran, done.found, done.wall_s)
    return list(done.failed)


class _Teller:
    """Says how many requests were simulated, and how long the rest may take."""

    def __init__(self, whole: Sweep) -> None:
        from sim.study.paper.recipes import expected_requests

        self.tasks = [expected_requests(task) for task in whole.tasks.values()]
        self.total = sum(self.tasks)
        self.began = self.said = time.monotonic()
        self.found: int | None = None
        self.mean = self.total / len(self.tasks)
        self.left = self.total

    def __call__(self, done: int, total: int) -> None:
        """Say how far it is; the first call comes before the first task."""
        if self.found is None:
            self.found = done
            if done < total:
                say(f"{total} tasks, {done} of them finished before")
        now = time.monotonic()
        ran = done - self.found
        if not ran or now - self.said < SAY_EVERY_S:
            return
        self.said = now
        # Long tasks come first; with some finished before, which ones they were is not known.
        share = sum(self.tasks[:ran]) / self.total if not self.found else ran / (total - self.found)
        left_s = (now - self.began) * (1 - share) / share
        requests = share * self.total * (1 - self.found / total)
        say(f"{done} of {total} tasks, about {requests:,.0f} requests, {left_s:.0f} s left")

    def end(self, ran: int, found: int, wall_s: float) -> None:
        """Say what was done in all."""
        requests = self.total * ran / len(self.tasks)
        if ran:
            say(
                f"{ran} tasks run in {wall_s:.0f} s, about {requests:,.0f} requests simulated; "
                f"{found} found finished"
            )
        else:
            say(f"all {found} tasks found finished: nothing simulated")


def _draw(planned: Sequence[Figure], paper: Paper | None, out: Path) -> None:
    """Make the tables and pictures that are not there yet."""
    from sim.report.recipe_figures import draw_figure
    from sim.study.files import output_folder
    from sim.study.paper.figure_data import figure_rows, read_rows, write_rows
    from sim.study.paper.figure_models import bucketing_note
    from sim.study.paper.recipes import fingerprint

    output_folder(out)
    drawn = 0
    for figure in planned:
        told = None if paper is None else paper.model_dump_json()
        stamp = fingerprint(figure, told)
        table = out / f"{figure.name}.parquet"
        there = [out / f"{figure.name}.{kind}" for kind in ("pdf", "png")]
        known = read_rows(table)
        if known is not None and known[1] == stamp and all(path.exists() for path in there):
            continue
        rows = figure_rows(figure, out)
        notes = bucketing_note() if figure.recipe.draw in ("breakdown", "overhead") else []
        draw_figure(figure, rows, paper, out, notes)
        write_rows(table, rows, stamp)
        drawn += 1
    say(f"{drawn} of {len(planned)} figures drawn, the others were up to date; they are in {out}")
