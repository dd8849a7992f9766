"""What an HTML report consists of, and the terminal's tables as parts of one.

Strings are plain text as the user wrote it; the template escapes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

Runs = tuple[tuple[str, bool], ...]
"""Pieces of a cell: text, and whether it is of less weight (an interval, a unit)."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: of the columns.
        rows: cells; as many as the head has.
        ends: numbers of the rows that end a section.
        right: of each column, whether its cells are set to the right.
    """

    head: tuple[Runs, ...]
    rows: tuple[tuple[Runs, ...], ...]
    ends: frozenset[int] = frozenset()
    right: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Lines:
    """Text, line by line; strong if it is not about other content."""

    lines: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True)
class Folded:
    """What is shown when asked for: text as in a file, or other blocks."""

    title: str
    text: str = ""
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        title: above it.
        figure: `data` and `layout` as plotly takes them, without colours (see `report.js`).
        note: below it.
        marks: what its dotted lines are.
    """

    title: str
    figure: Mapping[str, Any]
    note: str = ""
    marks: str = ""


Block = Table | Lines | Folded | Chart


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    title: str
    value: str
    half: str
    unit: str


@dataclass(frozen=True)
class Verdict:
    """Whether what follows can be trusted.

    Attributes:
        level: stable, backlogged or overloaded; or failed.
        text: one sentence.
    """

    level: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        title: its heading.
        blocks: its content.
        series: label and style of each series of its charts.
    """

    title: str
    blocks: tuple[Block, ...]
    series: tuple[tuple[str, Style], ...] = ()

    @property
    def charts(self) -> list[Chart]:
        """Its charts, which stand side by side where there is room."""
        return [block for block in self.blocks if isinstance(block, Chart)]

    @property
    def others(self) -> list[Block]:
        """Its other blocks, below the charts."""
        return [block for block in self.blocks if not isinstance(block, Chart)]


@dataclass(frozen=True)
class Study:
    """One result: a run, a comparison, a sweep or a capacity search.

    Attributes:
        title: what it is.
        about: model, hardware, workload; one line each.
        verdicts: the first thing to read.
        cards: headline figures.
        notes: what a reader must be told.
        sections: all else.
    """

    title: str
    about: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    cards: tuple[Card, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Style:
    """How a series is told from others, in grey and by colour-blind readers, too.

    Attributes:
        hue: number of its colour.
        dash: of its line, as plotly calls it.
        symbol: of its markers, as plotly calls it.
    """

    hue: int
    dash: str
    symbol: str


HUES = 7
"""Colours in `report.css`."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon")


def style(at: int) -> Style:
    """Return the style of a series by its number; 210 differ."""
    return Style(at % HUES, DASHES[at % len(DASHES)], SYMBOLS[at % len(SYMBOLS)])


def styled(labels: Sequence[str]) -> tuple[tuple[str, Style], ...]:
    """Return labels with the styles of their places."""
    return tuple((label, style(at)) for at, label in enumerate(labels))


def column_table(columns: Mapping[str, Sequence[object]]) -> Table:
    """Return a table given by its columns; figures are set to the right."""
    head = tuple(((title, False),) for title in columns)
    rows = zip(*columns.values(), strict=True)
    cells = tuple(tuple(((str(cell), False),) for cell in row) for row in rows)
    right = tuple(all(_is_figure(cell) for cell in column) for column in columns.values())
    return Table(head, cells, right=right)


def blocks_of(renderable: RenderableType) -> Iterator[Block]:
    """Yield a terminal's tables and texts as blocks of a page."""
    if isinstance(renderable, Group):
        for part in renderable.renderables:
            yield from blocks_of(part)
    elif isinstance(renderable, RichTable):
        yield _table(renderable)
    elif isinstance(renderable, Text) and renderable.plain.strip():
        yield Lines(tuple(renderable.plain.splitlines()))


def _table(table: RichTable) -> Table:
    columns = [[_runs(cell) for cell in column.cells] for column in table.columns]
    ends = (at for at, row in zip(count(), table.rows, strict=False) if row.end_section)
    return Table(
        tuple(_runs(column.header) for column in table.columns),
        tuple(zip(*columns, strict=True)),
        frozenset(ends),
        tuple(column.justify == "right" for column in table.columns),
    )


def _runs(cell: RenderableType) -> Runs:
    text = Text.from_markup(cell) if isinstance(cell, str) else Text(str(cell))
    spans = [span for span in text.spans if "dim" in str(span.style)]
    dim = [any(s.start <= at < s.end for s in spans) for at in range(len(text.plain))]
    return tuple(_joined(zip(text.plain, dim, strict=True)))


def _joined(letters: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Return letters of equal weight joined."""
    runs: list[tuple[str, bool]] = []
    for letter, dim in letters:
        if runs and runs[-1][1] == dim:
            runs[-1] = (runs[-1][0] + letter, dim)
        else:
            runs.append((letter, dim))
    return runs


def _is_figure(cell: object) -> bool:
    return str(cell).strip()[:1] in set("0123456789-+") or str(cell) == ""
