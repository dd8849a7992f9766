"""The paper's numbers: `results/reference/paper.yaml`, read and checked.

Every number carries its sources, by the tags that the file itself explains. Sources that disagree
are all kept, under `conflicts`. A number read off a plot has a source of kind `plot`, and its
figure says how exactly it could be read. What the file holds is the paper's or follows from the
paper's by arithmetic (kind `derived`); no result of ours stands there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sim.study.config.section import Section
from sim.study.paper.verdict import Claimed, Side
from sim.study.validation import validate
from sim.study.yaml_file import read_yaml
from sim.types import BadInput

PAPER = Path("results/reference/paper.yaml")
"""Where the file lies in the repository."""

Kind = Literal["ratio", "gain_ratio", "threshold", "value", "flat"]
SERIES_OF: Mapping[Kind, int] = {
    "ratio": 2,
    "gain_ratio": 2,
    "threshold": 1,
    "value": 1,
    "flat": 1,
}
"""How many series (of a `gain_ratio`: claims) a claim is about."""


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _has_three(given: Any) -> Any:
    if not isinstance(given, list | tuple) or len(given) != 3:
        raise ValueError("a point is [x, y, source]")
    return given


Sources = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
"""Tags of sources; one tag may stand without brackets."""
Point = Annotated[tuple[float | str, float, Sources], BeforeValidator(_has_three)]
"""x (a number or a category), y and the sources of y."""


class Origin(Section):
    """A source of numbers."""

    kind: Literal["text", "notes", "plot", "derived"] = Field(
        description="text of the paper, a reader's notes, a plot that was read off, arithmetic"
    )
    what: str = Field(min_length=1, description="What it is and where.")


class Number(Section):
    """A number of the paper that is no point of a figure."""

    value: float
    unit: str
    source: Sources
    relation: Literal["exactly", "about", "below", "up to"] = "exactly"
    note: str = ""


class Axis(Section):
    """An axis of a figure."""

    label: str = Field(min_length=1)
    unit: str = Field(description="Empty for categories.")
    low: float | None = Field(default=None, description="Where the paper's axis begins.")
    high: float | None = Field(default=None, description="Where it ends.")
    assumed: str = Field(default="", description="What of this axis we chose: no source says it.")


class ReadingError(Section):
    """How exactly a plot could be read, in the units of its axes."""

    x: float = Field(ge=0)
    y: float = Field(ge=0)


class Figure(Section):
    """A figure of the paper, as far as its numbers are known."""

    title: str = Field(min_length=1)
    x: Axis
    y: Axis
    conditions: str
    series: Mapping[str, tuple[Point, ...]] = Field(description="Name -> known points; may be few.")
    numbers: Mapping[str, Number] = Field(default_factory=dict)
    reading_error: ReadingError | None = None
    note: str = ""


class Claim(Section):
    """A claim of the paper, and what to compare with it.

    `ratio`: metric of the first series over that of the second. `gain_ratio`: value of the first
    claim over that of the second. `threshold`: the metric lies on one side of the bound. `value`:
    the metric has the value. `flat`: the metric at the last x over that at the first.
    """

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    text: str = Field(min_length=1)
    figure: str
    kind: Kind
    of: tuple[str, ...]
    metric: str = Field(min_length=1)
    condition: str = Field(min_length=1)
    source: Sources
    value: float | None = None
    bound: float | None = None
    side: Side | None = None
    unit: str = ""
    relation: Literal["exactly", "about", "below", "up to"] = "exactly"
    reading_error: float = Field(default=0.0, ge=0)
    conflict: str | None = Field(default=None, description="The conflict that it is part of.")
    section: Literal[8, 9] = Field(default=9, description="Of the specification that lists it.")
    note: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> Claim:
        if len(self.of) != SERIES_OF[self.kind]:
            raise ValueError(f"of: a {self.kind} is of {SERIES_OF[self.kind]}, got {len(self.of)}")
        self.claimed  # noqa: B018  (raises when value, bound and side do not fit)
        return self

    @property
    def claimed(self) -> Claimed:
        """What the verdict rule needs to know; a ratio claims a side of 1."""
        bound, side = self.bound, self.side
        if self.kind in ("ratio", "gain_ratio") and self.value is not None and bound is None:
            bound, side = 1.0, ("above" if self.value > 1 else "below")
        return Claimed(self.value, bound, side, self.reading_error)


class Reading(Section):
    """What some sources say where others say something else."""

    source: Sources
    says: str = Field(min_length=1)


class Conflict(Section):
    """Sources that disagree."""

    about: str = Field(min_length=1)
    readings: tuple[Reading, ...] = Field(min_length=2)
    kept: str = Field(min_length=1, description="What is done about it.")


class Paper(Section):
    """All that is known of the paper's numbers."""

    title: str
    reference: str
    sources: Mapping[str, Origin]
    setup: Mapping[str, Number]
    unknown: tuple[str, ...] = Field(description="What no source states.")
    conflicts: Mapping[str, Conflict]
    figures: Mapping[str, Figure]
    claims: tuple[Claim, ...]

    def figure(self, name: str) -> Figure:
        """Return a figure by its name: `5d`.

        Raises:
            BadInput: there is none of that name.
        """
        return self.figures[_known(name, self.figures, "figure")]

    def claim(self, name: str) -> Claim:
        """Return a claim by its id.

        Raises:
            BadInput: there is none of that id.
        """
        by_id = {claim.id: claim for claim in self.claims}
        return by_id[_known(name, by_id, "claim")]


def read_paper(path: Path = PAPER) -> Paper:
    """Read the paper's numbers.

    Raises:
        BadInput: the file cannot be read, a key is unknown or missing, a number lacks a source or
            names one that the file does not explain.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: the numbers of a paper are a mapping of keys, got {data!r:.60}")
    paper = validate(Paper, {**data}, "paper", lambda _: str(path))
    for problem in _problems(paper):
        raise BadInput(f"{path}: {problem}")
    return paper


def _problems(paper: Paper) -> Iterator[str]:
    """Yield what is wrong between the sections, the first first."""
    for where, tags in _sourced(paper):
        for tag in tags:
            if tag not in paper.sources:
                yield _unknown(f"{where}.source", tag, paper.sources)
    for name, figure in paper.figures.items():
        kinds = {paper.sources[tag].kind for tags in _tags_of(figure) for tag in tags}
        if "plot" in kinds and figure.reading_error is None:
            yield f"paper.figures.{name}.reading_error is missing: numbers were read off its plot"
    for claim in paper.claims:
        if "plot" in {paper.sources[tag].kind for tag in claim.source} and not claim.reading_error:
            yield f"paper.claims.{claim.id}.reading_error is missing: it was read off a plot"
    ids = [claim.id for claim in paper.claims]
    for name, times in Counter(ids).items():
        if times > 1:
            yield f"paper.claims: id {name!r} stands {times} times; ids are unique"
    yield from _dangling(paper, ids)


def _dangling(paper: Paper, ids: Sequence[str]) -> Iterator[str]:
    """Yield what claims name and the file does not have."""
    for claim in paper.claims:
        where = f"paper.claims.{claim.id}"
        if claim.figure not in paper.figures:
            yield _unknown(f"{where}.figure", claim.figure, paper.figures)
        if claim.conflict is not None and claim.conflict not in paper.conflicts:
            yield _unknown(f"{where}.conflict", claim.conflict, paper.conflicts)
        for name in claim.of if claim.kind == "gain_ratio" else ():
            if name not in ids:
                yield _unknown(f"{where}.of", name, ids)


def _sourced(paper: Paper) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the key and the sources of everything that has some."""
    for name, number in paper.setup.items():
        yield f"paper.setup.{name}", number.source
    for name, conflict in paper.conflicts.items():
        for at, reading in enumerate(conflict.readings):
            yield f"paper.conflicts.{name}.readings.{at}", reading.source
    for name, figure in paper.figures.items():
        for tags in _tags_of(figure):
            yield f"paper.figures.{name}", tags
    for claim in paper.claims:
        yield f"paper.claims.{claim.id}", claim.source


def _tags_of(figure: Figure) -> Iterator[Sequence[str]]:
    yield from (point[2] for points in figure.series.values() for point in points)
    yield from (number.source for number in figure.numbers.values())


def _known(name: str, names: Iterable[str], what: str) -> str:
    valid = list(names)
    if name not in valid:
        raise BadInput(f"{what} {name!r} is not in the paper's numbers; valid: {', '.join(valid)}")
    return name


def _unknown(where: str, value: str, valid: Iterable[str]) -> str:
    return f"{where}: unknown {value!r}; valid: {', '.join(valid)}"
