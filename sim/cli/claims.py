"""`paper claims` and `paper sensitivity`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.figures import PAPER, RECIPES, SAY_EVERY_S
from sim.cli.show import Interrupted, say

if TYPE_CHECKING:
    from sim.study.paper.claims import Result, Study

RESULTS = Path("results/out")
OUT = RESULTS / "claims"
PAGE = Path("results/REPRODUCTION.md")
PARTS = (
    ("Claims", "make claims", "claims/claims.md"),
    ("Sensitivity", "make sensitivity", "claims/sensitivity.md"),
    ("Ablation", "make ablation", "ablation/ablation.md"),
    ("Frontier", "make frontier", "frontier/frontier.md"),
)
"""Of the page: title, command, and the file that it leaves."""
ASSUMPTIONS = Path("results/studies/assumptions.yaml")

Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes; default: one a processor.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder of tables and probes.")]
Points = Annotated[
    int | None,
    typer.Option("--points", min=0, help="First points of the hypercube; default: all."),
]
Given = Annotated[Path, typer.Option("--assumptions", help="What the paper leaves open.")]


def claims(
    jobs: Jobs = None,
    points: Points = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The paper set only, with few replications.")
    ] = False,
    out: Out = OUT,
    assumptions: Given = ASSUMPTIONS,
    recipes: Annotated[Path, typer.Option("--recipes", help="Folder of the recipes.")] = RECIPES,
    paper: Annotated[Path, typer.Option("--paper", help="The paper's numbers.")] = PAPER,
) -> None:
    """Judge every claim of the paper, under the paper set and under other assumptions."""
    from sim.report.paper_claims import table, write_claims

    study = _study(assumptions, recipes, paper)
    if quick:
        study = _quick(study)
        points = 0
    result = _judged(study, out, jobs, points, alone=not quick)
    for path in write_claims(result, out):
        say(f"wrote {path}")
    typer.echo("\n".join(table(result)))


def sensitivity(
    jobs: Jobs = None,
    points: Points = None,
    out: Out = OUT,
    assumptions: Given = ASSUMPTIONS,
    recipes: Annotated[Path, typer.Option("--recipes", help="Folder of the recipes.")] = RECIPES,
    paper: Annotated[Path, typer.Option("--paper", help="The paper's numbers.")] = PAPER,
) -> None:
    """Show how far each assumption moves each claim: a picture, tables, conclusions."""
    from sim.report.paper_sensitivity import conclusions, write_sensitivity
    from sim.study.paper.claims import run_grids

    study = _study(assumptions, recipes, paper)
    result = _judged(study, out, jobs, points)
    grids = run_grids(study, out, _jobs(jobs), Teller("pairs of assumptions"))
    for path in write_sensitivity(result, grids, out):
        say(f"wrote {path}")
    typer.echo("\n".join(conclusions(result)))


def page(
    jobs: Jobs = None,
    points: Points = None,
    out: Annotated[Path, typer.Option("--out", help="Folder with the results of all.")] = RESULTS,
    to: Annotated[Path, typer.Option("--page", help="Where the page goes.")] = PAGE,
    readme: Annotated[
        Path | None, typer.Option("--readme", help="File whose table of claims is renewed.")
    ] = None,
    assumptions: Given = ASSUMPTIONS,
    recipes: Annotated[Path, typer.Option("--recipes", help="Folder of the recipes.")] = RECIPES,
    paper: Annotated[Path, typer.Option("--paper", help="The paper's numbers.")] = PAPER,
) -> None:
    """Write REPRODUCTION.md from what figures, claims, sensitivity, ablation, frontier left."""
    from sim.report.reproduction import Parts, read_expected, update_readme, write_page

    result = _judged(_study(assumptions, recipes, paper), out / "claims", jobs, points)
    expected = read_expected(assumptions.parent / "expected.yaml", result.values)
    files = [(title, command, out / path) for title, command, path in PARTS]
    pictures = to.parent / "reference" / "figures"
    for title in write_page(Parts(result, expected, out / "figures", files), to, pictures):
        say(f"note: {title.lower()}: not there yet, the page says so")
    if readme is not None:
        update_readme(result, readme)
    say(f"wrote {to}")


def _study(assumptions: Path, recipes: Path, paper: Path) -> Study:
    from sim.study.paper.assumptions import read_assumptions
    from sim.study.paper.claims import read_study
    from sim.study.paper.numbers import read_paper

    return read_study(read_paper(paper), read_assumptions(assumptions), recipes)


def _quick(study: Study) -> Study:
    """Return the study with as few replications of the paper set as of a setting."""
    from dataclasses import replace

    given = study.assumptions
    samples = given.samples.model_copy(update={"paper_seeds": given.samples.seeds})
    return replace(study, assumptions=given.model_copy(update={"samples": samples}))


def _judged(
    study: Study, out: Path, jobs: int | None, points: int | None, alone: bool = True
) -> Result:
    from sim.study.paper.claims import judge_claims

    try:
        return judge_claims(study, out, _jobs(jobs), points, alone, Teller("settings"))
    except KeyboardInterrupt:
        raise Interrupted(f"what is finished is in {out}, the same command goes on") from None


def _jobs(jobs: int | None) -> int:
    from sim.study.sweeps.backends import processors

    return jobs or processors()


class Teller:
    """Says how many requests were simulated, and how long the rest may take."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.began = self.said = time.monotonic()
        self.found: int | None = None
        self.requests = 0.0

    def __call__(self, done: int, total: int, requests: float) -> None:
        """Say how far it is; the first call comes before the first piece of work."""
        self.requests += requests
        if self.found is None:
            self.found = done
            if done < total:
                say(f"{total} {self.what}, {done} of them finished before")
            return
        now = time.monotonic()
        if done < total and now - self.said < SAY_EVERY_S:
            return
        self.said = now
        took = now - self.began
        left = f"{took * (total - done) / (done - self.found):.0f} s left"
        how = f"took {took:.0f} s" if done == total else left
        say(f"{done} of {total} {self.what}, {self.requests:,.0f} requests simulated, {how}")
