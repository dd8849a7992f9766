"""`tune`: a search for good policy parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.capacity import Attainment, EveryClass
from sim.cli.show import Interrupted, notices, progress, say, show, show_json
from sim.cli.study import Config, Jobs, Json, Overrides

SHOWN_FAILURES = 10


def tune(
    config: Config,
    overrides: Overrides = None,
    trials: Annotated[
        int, typer.Option("--trials", help="Parameters to try, the config's own included.")
    ] = 40,
    attainment: Attainment = 0.9,
    every_class: EveryClass = False,
    load: Annotated[
        float,
        typer.Option("--load", help="Share of the baseline's capacity where p99 TTFT is measured."),
    ] = 0.8,
    jobs: Jobs = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the folder holds.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: CONFIG's name with -tune.")
    ] = None,
    json: Json = False,
) -> None:
    """Search the config's sweep section for the highest capacity and the lowest p99 TTFT."""
    from sim.report.tuning import draw_tuning, tuning_table
    from sim.study.capacity.attainment import Target
    from sim.study.tuning.output import failure_lines, tune_content, write_tuning
    from sim.study.tuning.search import tune
    from sim.study.tuning.space import read_space

    space = read_space(config, overrides or ())
    folder = out or Path(f"{config.stem}-tune")
    target = Target(attainment, every_class)
    try:
        with progress("tuning") as update:
            found = tune(space, target, trials, load, folder, jobs, resume, update)
    except KeyboardInterrupt:
        raise Interrupted(f"what is measured is in {folder}, --resume goes on") from None
    notices(found.notes)
    failures = failure_lines(found)
    for line in failures[:SHOWN_FAILURES]:
        say(f"failed: {line}")
    if len(failures) > SHOWN_FAILURES:
        say(f"failed: … {len(failures)} messages in all, in tune.json")
    write_tuning(found, folder)
    say(f"wrote {folder}, picture: {draw_tuning(folder)}")
    content = tune_content(found)
    if json:
        show_json(content)
    else:
        show(tuning_table(content))
