"""The `sweep` section of a config: what to vary, and how.

Each entry is a config key with a list of values, or with a range (`{low: 0.1, high: 0.9}`; `log:
true` spaces it evenly in the logarithm, `integer: true` rounds to whole numbers). Lists make a
grid; ranges are filled by `method: lhs` or `sobol` with `n` points, at every point of the grid.
Keys named together in `zip` go together, value by value. Keys may be nested as in the config.

    sweep:
      policy.name: [bucketserve, static]
      policy.theta: {low: 0.2, high: 0.8}     # only where the policy has it
      policy.static.max_batch_size: [4, 16]   # only where the policy is static
      workload.arrivals.rate: [2, 4]
      cluster.count: [2, 4]
      zip: [[workload.arrivals.rate, cluster.count]]
      method: sobol
      n: 16
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from sim.study.config import KEYS
from sim.study.config.section import Section
from sim.study.validation import shown, unknown_key, validate
from sim.types import BadInput

SECTION = "sweep"
Where = Callable[[str], str]
"""Names the file (or the command line) that set a key."""


class Range(Section):
    """Values between two bounds."""

    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(False, description="evenly spaced in the logarithm")
    integer: bool = Field(False, description="whole numbers")

    @model_validator(mode="after")
    def _fits(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: low {self.low:g} is not above 0")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"integer: low {self.low:g} and high {self.high:g} have to be whole")
        return self

    def at(self, share: float) -> float | int:
        """Return the value at a share (0 to 1) of the way from low to high."""
        low, high = self.low, self.high + (1 if self.integer else 0)
        if self.log:
            value = low * math.exp(share * math.log(high / low))
        else:
            value = low + share * (high - low)
        return min(int(value), int(self.high)) if self.integer else min(value, high)


class SweepOptions(Section):
    """How points are chosen."""

    method: Literal["grid", "lhs", "sobol"] = Field("grid", description="how ranges are filled")
    n: int | None = Field(None, ge=1, le=1_000_000, description="points of the ranges")
    seed: int = Field(0, ge=0, description="of the points, not of the simulations")
    zip: tuple[tuple[str, ...], ...] = Field((), description="groups of keys that go together")

    @model_validator(mode="after")
    def _fits(self) -> SweepOptions:
        if (self.method == "grid") != (self.n is None):
            raise ValueError("n goes with method: lhs or sobol")
        if self.method == "sobol" and self.n is not None and self.n & (self.n - 1):
            near = 2 ** round(math.log2(self.n))
            raise ValueError(f"n: sobol points need a power of 2, for example {near}, got {self.n}")
        return self


@dataclass(frozen=True)
class Axis:
    """Keys whose values go together.

    Attributes:
        keys: dotted config keys.
        rows: their values, one row after the other.
    """

    keys: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class SweepConfig:
    """A validated `sweep` section.

    Attributes:
        options: how points are chosen.
        axes: the lists; their product is the grid.
        ranges: the ranges, by key.
    """

    options: SweepOptions
    axes: tuple[Axis, ...]
    ranges: Mapping[str, Range]

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that varies."""
        return (*(key for axis in self.axes for key in axis.keys), *self.ranges)


def sweep_config(section: Any, where: Where, designed: bool = True) -> SweepConfig:
    """Return the `sweep` section of a config.

    Args:
        section: as it was read.
        where: says who set a key, for error messages.
        designed: ranges need a `method` that fills them; False: somebody else chooses points.

    Raises:
        BadInput: one line, for the first thing that is wrong.
    """
    if not isinstance(section, Mapping) or not section:
        raise BadInput(
            f"{where(SECTION)}: {SECTION}: expected keys and what they take, for example "
            f"{{workload.arrivals.rate: [2, 4, 8]}}, got {shown(section)}"
        )
    given = {k: v for k, v in section.items() if k in SweepOptions.model_fields}
    options = validate(SweepOptions, given, SECTION, where)
    varied = dict(_entries({k: v for k, v in section.items() if k not in given}))
    lists: dict[str, list[Any]] = {}
    ranges: dict[str, Range] = {}
    for key, value in varied.items():
        _check_key(key, where)
        if isinstance(value, Mapping):
            ranges[key] = validate(Range, value, f"{SECTION}.{key}", where)
        else:
            lists[key] = _values(key, value, where)
    if designed:
        _check_method(options, ranges, where)
    if not varied:
        raise BadInput(f"{where(SECTION)}: {SECTION}: no key to vary: there are no points")
    return SweepConfig(options, tuple(_axes(lists, options, where)), ranges)


def _entries(section: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and what they take; nested mappings are written out."""
    for key, value in section.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not set(value) & set(Range.model_fields):
            yield from _entries(value, f"{dotted}.")
        else:
            yield dotted, value


def _check_key(key: str, where: Where) -> None:
    first = key.partition(".")[0]
    if first not in KEYS:
        valid = (*KEYS, *SweepOptions.model_fields)
        raise BadInput(f"{where(SECTION)}: {unknown_key(f'{SECTION}.{first}', valid)}")


def _values(key: str, value: Any, where: Where) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput(
            f"{where(SECTION)}: {SECTION}.{key}: expected a list of values or a range "
            f"{{low: …, high: …}}, got {shown(value)}"
        )
    if not value:
        raise BadInput(f"{where(SECTION)}: {SECTION}.{key}: the list is empty: there are no points")
    return value


def _check_method(options: SweepOptions, ranges: Mapping[str, Range], where: Where) -> None:
    if ranges and options.method == "grid":
        raise BadInput(
            f"{where(SECTION)}: {SECTION}.{next(iter(ranges))}: a range needs "
            f"{SECTION}.method: lhs or sobol, and {SECTION}.n"
        )
    if options.method != "grid" and not ranges:
        raise BadInput(
            f"{where(SECTION)}: {SECTION}.method: {options.method} fills ranges "
            "{low: …, high: …}, there is none"
        )


def _axes(lists: Mapping[str, list[Any]], options: SweepOptions, where: Where) -> Iterator[Axis]:
    """Yield the axes of the grid: zipped keys where the first of them stands."""
    groups: dict[str, tuple[str, ...]] = {}
    for group in options.zip:
        for key in group:
            if key not in lists:
                raise BadInput(f"{where(SECTION)}: {unknown_key(f'{SECTION}.zip: {key}', lists)}")
            if key in groups:
                raise BadInput(f"{where(SECTION)}: {SECTION}.zip: {key!r} twice")
            groups[key] = group
    for key in lists:
        group = groups.get(key, (key,))
        if key != next(k for k in lists if k in group):
            continue
        lengths = {len(lists[k]) for k in group}
        if len(lengths) > 1:
            counted = ", ".join(f"{k} has {len(lists[k])}" for k in group)
            raise BadInput(f"{where(SECTION)}: {SECTION}.zip: as many values each, {counted}")
        yield Axis(group, tuple(zip(*(lists[k] for k in group), strict=True)))
