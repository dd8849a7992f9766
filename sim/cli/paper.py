"""`paper`: studies around the reproduction of the BucketServe paper."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli import claims
from sim.cli.show import Interrupted, say

if TYPE_CHECKING:
    from sim.study.paper.units import Progress

app = typer.Typer(help="Studies around the reproduction of the BucketServe paper.")
app.command("claims")(claims.claims)
app.command("sensitivity")(claims.sensitivity)
app.command("report")(claims.page)

SAY_EVERY_S = 10.0
FEW_RESULTS = 10
"""Before so many nothing is said: the first ones take longer."""
RECIPES = Path("results/figures")
STUDIES = Path("results/studies")
ABLATION = Path("results/out/ablation")
FRONTIER = Path("results/out/frontier")

Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes; default: one a processor.")
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", min=1, help="Replications; default: the study's.")
]
Recipes = Annotated[Path, typer.Option("--recipes", help="Folder with _paper.yaml.")]


@app.command()
def ablation(
    out: Annotated[Path, typer.Option("--out", help="Folder of results.")] = ABLATION,
    jobs: Jobs = None,
    seeds: Seeds = None,
    study: Annotated[Path, typer.Option("--study", help="What is compared.")] = STUDIES
    / "ablation.yaml",
    recipes: Recipes = RECIPES,
) -> None:
    """Measure what each component of BucketServe is worth; go on where it was."""
    from sim.report.paper_ablation import write_ablation
    from sim.study.paper.ablation import plan_ablation, run_ablation
    from sim.study.paper.recipes import read_paper_set

    planned = plan_ablation(read_paper_set(recipes), study, seeds)
    result = _run(run_ablation, planned, out, jobs)
    _end(write_ablation(result, out), result.checks.errors)


@app.command()
def frontier(
    out: Annotated[Path, typer.Option("--out", help="Folder of results.")] = FRONTIER,
    jobs: Jobs = None,
    seeds: Seeds = None,
    study: Annotated[Path, typer.Option("--study", help="What is compared.")] = STUDIES
    / "frontier.yaml",
    recipes: Recipes = RECIPES,
) -> None:
    """Find the capacity of every policy over SLO scales; go on where it was."""
    from sim.report.paper_frontier import write_frontier
    from sim.study.paper.frontier import plan_frontier, run_frontier
    from sim.study.paper.recipes import read_paper_set

    planned = plan_frontier(read_paper_set(recipes), study, seeds)
    for name, why in planned.left_out.items():
        say(f"note: policy {name} is left out: {why}")
    result = _run(run_frontier, planned, out, jobs)
    _end(write_frontier(result, out), result.checks.errors)


def _run(study: Callable[..., Any], planned: Any, out: Path, jobs: int | None) -> Any:
    """Run what has no result yet."""
    from joblib import cpu_count

    from sim.study.files import output_folder
    from sim.study.paper.units import FOLDER, Progress

    output_folder(output_folder(out) / FOLDER)
    teller = _Teller()
    progress = Progress(planned.cost, teller)
    try:
        found = study(planned, out, jobs or cpu_count(), progress)
    except KeyboardInterrupt:
        raise Interrupted(f"what is finished is in {out}, the same command goes on") from None
    teller.end(progress)
    return found


class _Teller:
    """Says how much was simulated, and how long the rest may take."""

    def __init__(self) -> None:
        self.began = self.said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.said < SAY_EVERY_S or progress.ran < FEW_RESULTS:
            return
        self.said = now
        left_s = (now - self.began) * progress.share_left
        say(f"{progress.ran} results, {_simulated(progress)}, about {left_s:.0f} s left")

    def end(self, progress: Progress) -> None:
        """Say what was done in all."""
        if not progress.ran:
            say(f"all {progress.found} results found finished: nothing simulated")
            return
        took_s = time.monotonic() - self.began
        say(
            f"{progress.ran} results in {took_s:.0f} s, {_simulated(progress)}; "
            f"{progress.found} found finished"
        )


def _simulated(progress: Progress) -> str:
    return f"{progress.runs:,} runs, up to {progress.requests:,} requests simulated"


def _end(written: Sequence[Path], errors: Sequence[str]) -> None:
    """Name the files; fail if something could not be run."""
    say(f"written: {', '.join(str(path) for path in written)}")
    if errors:
        from sim.types.errors import SimulationError

        raise SimulationError(
            f"{len(errors)} kinds of runs failed, the first with: {errors[0]}; what they would "
            "give is missing, the same command runs them again"
        )
