"""What the paper leaves open: assumptions, their values, and the settings they make.

`results/studies/assumptions.yaml` lists every assumption with its values; the first is the paper
set's and changes nothing. A *setting* is the paper set with one assumption changed, or a point of a
Latin hypercube over all of them, in which every value of an assumption is drawn equally often.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sim.study.config.section import Section
from sim.study.paper.recipes import Overrides, Overriding
from sim.study.paper.verdict import JOINT
from sim.study.validation import unknown_key, validate
from sim.study.yaml_file import read_yaml
from sim.types import BadInput

FILE = Path("results/studies/assumptions.yaml")
PAPER_SET = "paper set"
"""The assumption of the setting that changes none."""

Definition = Literal["busy", "kernel", "flops"]


class Change(Overriding):
    """What a value of an assumption changes."""

    padding_free: bool = Field(False, description="whether the engine does not pad")
    figures: dict[str, Overrides] = Field({}, description="figure -> keys over its recipe")
    measure: Definition | None = Field(None, description="what utilisation means")

    @property
    def nothing(self) -> bool:
        """Whether the paper set stays as it is."""
        return self == Change()


class Assumption(Section):
    """One of the things that the paper leaves open."""

    label: str = Field(min_length=1, description="as a table shows it")
    why: str = Field(min_length=1, description="why it is open, and where the values come from")
    values: Mapping[str, Change] = Field(description="the paper set's first")

    @model_validator(mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("values"), dict):
            return given | {"values": {str(key): value for key, value in given["values"].items()}}
        return given

    @model_validator(mode="after")
    def _begins_with_the_paper(self) -> Assumption:
        changes = list(self.values.values())
        if len(changes) < 2 or not changes[0].nothing or any(c.nothing for c in changes[1:]):
            raise ValueError("values: the first is {} (the paper set's), at least one more is not")
        return self


class Samples(Section):
    """How many settings are drawn."""

    points: int = Field(500, ge=0, description="of the Latin hypercube")
    seeds: int = Field(3, ge=1, description="replications of a setting")
    paper_seeds: int = Field(20, ge=1, description="replications of the paper set")
    seed: int = Field(0, ge=0, description="of the draw")


class Effort(Section):
    """How exactly a rate is searched for in a setting."""

    requests: dict[str, int] = Field({}, description="figure -> requests of a run")
    width: float = Field(0.03, gt=0, lt=1, description="of a bisection, relative to the upper end")


class Pair(Section):
    """Two assumptions varied together, for some claims."""

    of: tuple[str, str] = Field(description="assumptions: down and across the table")
    claims: tuple[str, ...] = Field(min_length=1, description="ids of claims")
    why: str = Field(min_length=1, description="what the table is to show")


class Assumptions(Section):
    """All that is varied."""

    samples: Samples = Samples()
    effort: Effort = Effort()
    assumptions: dict[str, Assumption]
    pairs: tuple[Pair, ...] = ()

    @model_validator(mode="after")
    def _pairs_are_known(self) -> Assumptions:
        for name in (name for pair in self.pairs for name in pair.of):
            if name not in self.assumptions:
                raise ValueError(f"pairs: {unknown_key(name, self.assumptions)}")
        return self


@dataclass(frozen=True)
class Setting:
    """The paper set with assumptions changed.

    Attributes:
        assumption: the one that is changed, `JOINT`, or `PAPER_SET`.
        value: its value; of a point of the hypercube its number.
        chosen: value by assumption, of those that are not the paper set's.
        changes: what they change, in the order of the file.
    """

    assumption: str
    value: str
    chosen: Mapping[str, str]
    changes: tuple[Change, ...]


def read_assumptions(path: Path = FILE) -> Assumptions:
    """Read the assumptions.

    Raises:
        BadInput: the file cannot be read, or a key or value is not valid.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a mapping with {', '.join(Assumptions.model_fields)}")
    return validate(Assumptions, data, "assumptions", lambda _: str(path))


def settings(given: Assumptions, points: int | None = None) -> Iterator[Setting]:
    """Yield the paper set, then one assumption changed at a time, then the points of the hypercube.

    Args:
        given: the assumptions.
        points: of the hypercube, the first of it; None: all.
    """
    yield Setting(PAPER_SET, PAPER_SET, {}, ())
    for name, assumption in given.assumptions.items():
        for value, change in list(assumption.values.items())[1:]:
            yield Setting(name, value, {name: value}, (change,))
    count = given.samples.points
    drawn = _hypercube(given, count)
    for number in range(count if points is None else min(points, count)):
        chosen = {name: values[number] for name, values in drawn.items()}
        changed = {n: v for n, v in chosen.items() if not given.assumptions[n].values[v].nothing}
        changes = tuple(given.assumptions[n].values[v] for n, v in changed.items())
        yield Setting(JOINT, str(number), changed, changes)


def grid(given: Assumptions, pair: Pair) -> Iterator[Setting]:
    """Yield every combination of the values of two assumptions, row by row."""
    down, across = (given.assumptions[name].values for name in pair.of)
    for row, change in down.items():
        for column, other in across.items():
            chosen = dict(zip(pair.of, (row, column), strict=True))
            changes = tuple(one for one in (change, other) if not one.nothing)
            yield Setting(" x ".join(pair.of), f"{row}, {column}", chosen, changes)


def _hypercube(given: Assumptions, count: int) -> dict[str, list[str]]:
    """Return the values of each assumption, one a point, each about equally often."""
    drawn = {}
    for at, (name, assumption) in enumerate(given.assumptions.items()):
        values = list(assumption.values)
        order = np.random.default_rng([given.samples.seed, at]).permutation(count)
        drawn[name] = [values[place * len(values) // count] for place in order.tolist()]
    return drawn
