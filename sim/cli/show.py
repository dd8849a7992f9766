"""Where output goes: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH_OF_FILES = 200
"""Columns of a table that goes to a file or a pipe."""


class Interrupted(Exception):
    """The user stopped a command that keeps what it has done; says where, and how to go on."""


def console() -> Console:
    """Return the console of stdout."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, highlight=False)


def show(renderable: RenderableType) -> None:
    """Print a table."""
    console().print(renderable)


def show_columns(columns: Mapping[str, Sequence[object]]) -> None:
    """Print a table given by its columns; None is an empty cell."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=SIMPLE_HEAD)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*[escape("" if cell is None else str(cell)) for cell in cells])
    show(table)


def show_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    from sim.study.files import json_text

    print(json_text(data))


def notices(lines: Sequence[str]) -> None:
    """Print notices to stderr."""
    for line in lines:
        say(f"note: {line}")


def by_policy(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each note once, with the policies it is about."""
    labels: dict[str, list[str]] = {}
    for label, lines in notes.items():
        for line in lines:
            labels.setdefault(line, []).append(label)
    return [f"{', '.join(of)}: {line}" for line, of in labels.items()]


def say(line: str) -> None:
    """Print one line to stderr."""
    print(" ".join(line.split()), file=sys.stderr)


@contextmanager
def progress(what: str, rate: bool = False) -> Iterator[Callable[[int, int | None], None] | None]:
    """Yield what to call with (done, of all); on a terminal only, else None.

    Args:
        what: is done.
        rate: show how many are done in a second.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    speed = (MofNCompleteColumn(), TextColumn("{task.fields[speed]}")) if rate else ()
    columns = (*Progress.get_default_columns(), *speed)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, speed="")

        def update(done: int, total: int | None) -> None:
            per_s = bar.tasks[0].speed
            speed = "" if per_s is None else f"{per_s:.3g}/s"
            bar.update(task, completed=done, total=total, speed=speed)

        yield update
