"""`validate`: a measured serving run, replayed and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.show import notices, say, show, show_json
from sim.cli.study import Json, Out, Overrides

if TYPE_CHECKING:
    from sim.study.config import Experiment
    from sim.study.fidelity.engine_file import Settings
    from sim.study.fidelity.fit import Fitted
    from sim.study.fidelity.measured import Measured

Result = Annotated[
    Path,
    typer.Argument(metavar="RESULT", help="JSON of vllm bench serve --save-detailed, or CSV."),
]
EngineFiles = Annotated[
    list[Path] | None,
    typer.Option("--engine", help="Engine settings: YAML, or a CSV with one row; the last wins."),
]
ServerLog = Annotated[
    Path | None, typer.Option("--server-log", help="The server's log: size of the KV cache.")
]
Blocks = Annotated[
    Path | None, typer.Option("--prefix-blocks", help="CSV with the block ids of the prompts.")
]
Run = Annotated[str | None, typer.Option("--run", help="Which run of a table with several.")]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Of the benchmark, where it left no arrivals.")
]
Fit = Annotated[
    str | None,
    typer.Option("--fit", metavar="NAMES", help="Fit host and API constants first: a,b,c."),
]
Rows = Annotated[
    str | None, typer.Option("--rows", metavar="FIRST:END", help="Rows for --fit; default: all.")
]
WriteEngine = Annotated[
    Path | None, typer.Option("--write-engine", help="Engine file for what --fit found.")
]


def validate(
    result: Result,
    overrides: Overrides = None,
    engine: EngineFiles = None,
    server_log: ServerLog = None,
    prefix_blocks: Blocks = None,
    run: Run = None,
    seed: Seed = 0,
    fit: Fit = None,
    rows: Rows = None,
    write_engine: WriteEngine = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Replay a measured run request by request, and compare simulated with measured."""
    from sim.report.fidelity import validation_table
    from sim.report.fidelity_figures import draw_validation
    from sim.study.fidelity.engine_file import Settings, read_engine, read_log
    from sim.study.fidelity.measured import read_measured
    from sim.study.fidelity.output import content_of, write_validation
    from sim.study.fidelity.replay import experiment_of, replay
    from sim.study.fidelity.run_table import read_prefix_blocks
    from sim.study.files import output_folder

    _check_options(fit, rows, write_engine)
    if out is not None:
        output_folder(out)
    measured = read_measured(result, run, seed)
    if prefix_blocks is not None:
        measured = read_prefix_blocks(prefix_blocks, measured)
    given = Settings() if server_log is None else read_log(server_log)
    for path in engine or []:
        given = read_engine(path, measured.name).over(given)
    measured = replace(measured, notes=(*measured.notes, *given.notes))
    typed = overrides or []

    def experiment(more: Sequence[str] = ()) -> Experiment:
        return experiment_of(measured, given, [*typed, *more])

    fitted = None
    if fit is not None:
        fitted = _fitted(measured, experiment, fit, rows)
        if write_engine is not None:
            _write_engine(write_engine, given, typed, fitted)
    made = replay(measured, experiment(fitted.overrides() if fitted else ()))
    notices(made.notes)
    if out is not None:
        write_validation(made, out, fitted)
        say(f"wrote {out}, picture: {draw_validation(made, out)}")
    content = content_of(made, fitted)
    if json:
        show_json(content)
    else:
        show(validation_table(content))


def _check_options(fit: str | None, rows: str | None, write_engine: Path | None) -> None:
    from sim.types import BadInput

    for name, value in (("--rows", rows), ("--write-engine", write_engine)):
        if value is not None and fit is None:
            raise BadInput(f"{name} goes with --fit NAMES")


def _fitted(measured: Measured, experiment: object, names: str, rows: str | None) -> Fitted:
    from sim.study.fidelity.fit import fit_constants, parse_constants, parse_rows

    constants = parse_constants(names)
    used = parse_rows(rows, len(measured.trace))
    return fit_constants(measured, experiment, constants, used)  # type: ignore[arg-type]


def _write_engine(path: Path, given: Settings, typed: Sequence[str], fitted: Fitted) -> None:
    from sim.study.fidelity.engine_file import typed_settings
    from sim.study.fidelity.output import engine_text
    from sim.study.files import output_folder, write_text

    output_folder(path.parent)
    write_text(path, engine_text(typed_settings(typed).over(given), fitted))
    say(f"wrote {path}")
