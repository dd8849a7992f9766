"""The command line. It wires the packages and holds no logic.

Heavy imports stay inside the commands, so that `bucketsim --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from sim.cli import (
    calibrate,
    capacity,
    catalogue,
    figures,
    paper,
    report,
    study,
    sweep,
    tune,
    validate,
    workload,
)
from sim.cli.show import Interrupted

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

UsageError: type[Any] = typer.BadParameter.__base__  # type: ignore[assignment]
"""Base of all errors in how a command was called; where it lives depends on Typer's version."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Simulate LLM serving clusters and compare their scheduling policies.",
)
app.command("run")(study.run)
app.command("compare")(study.compare)
app.command("sweep")(sweep.sweep)
app.command("results")(sweep.results)
app.command("capacity")(capacity.capacity)
app.command("tune")(tune.tune)
app.command("report")(report.report)
app.command("figures")(figures.figures)
app.command("policies")(catalogue.policies)
app.command("profiles")(catalogue.profiles)
app.command("cite")(catalogue.cite)
app.command("validate")(validate.validate)
app.add_typer(workload.app, name="workload")
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(paper.app, name="paper")


def _version(wanted: bool) -> None:
    if wanted:
        from sim import __version__
        from sim.form import core_form, unusable

        print(f"bucketsim {__version__} ({core_form()} core)")
        line = unusable()
        if line is not None:
            print(f"bucketsim: warning: {line}", file=sys.stderr)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status (design section 8)."""
    try:
        status = app(arguments, prog_name="bucketsim", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        return _failed(error)
    if status == INTERRUPTED:  # newer versions of Typer return it without a word
        return _fail(INTERRUPTED, "interrupted")
    return status if isinstance(status, int) else DONE


def _failed(error: Exception) -> int:
    """Report what a user can put right; raise what is a fault of the program."""
    from sim.types.errors import BadInput, SimulationError

    if isinstance(error, UsageError):
        return _fail(BAD_INPUT, f"{error.format_message().rstrip('.')}. See --help.")
    if isinstance(error, BadInput):
        return _fail(BAD_INPUT, str(error))
    if isinstance(error, Interrupted):
        return _fail(INTERRUPTED, f"interrupted; {error}")
    if isinstance(error, SimulationError):
        return _fail(FAILED, str(error))
    if isinstance(error, OSError):
        return _fail(FAILED, f"{error.filename or 'output'}: {error.strerror or error}")
    raise error


def _fail(status: int, message: str) -> int:
    print(f"bucketsim: error: {' '.join(message.split())}", file=sys.stderr)
    return status
