"""From a `sweep` section to its points: grids, Latin hypercubes, Sobol sequences, Saltelli designs.

The policies of a config, or those that the sweep names, are the outermost loop. A policy parameter
applies to the policies that have it, `policy.NAME.parameter` to that policy only: the points of the
others do not multiply. Ranges are filled the same way for every policy and grid point, so that
policies are compared at equal values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

import policies
from sim.study.config import Origins, policy_choices, set_key
from sim.study.sweeps.config import SECTION, Axis, Range, SweepConfig
from sim.study.validation import unknown_key
from sim.types import BadInput

POLICY, POLICY_NAME = "policy", "policy.name"
Shares = NDArray[np.float64]
"""Points of a design in the unit cube, shape (points, ranges)."""


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep, with one policy.

    Attributes:
        data: its config, as plain data.
        values: what it sets, by dotted key.
        cell: number of the policy and grid point; the points of a design share one.
        varied: the keys whose ranges apply to it.
    """

    data: dict[str, Any]
    values: dict[str, Any]
    cell: int
    varied: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A policy of the sweep; `chosen` is its value on the sweep's own axis of policies."""

    data: dict[str, Any]
    name: str
    label: str
    chosen: Any


@dataclass(frozen=True)
class PolicySpace:
    """What varies for one policy.

    Attributes:
        base: the config without its `sweep` section, as plain data.
        entry: the policy.
        axes: the rows of each axis of the grid that are distinct for it.
        ranges: those that apply to it, by key.
    """

    base: Mapping[str, Any]
    entry: Entry
    axes: tuple[tuple[dict[str, Any], ...], ...]
    ranges: Mapping[str, Range]

    def point(self, values: Mapping[str, Any], cell: int = 0) -> Point:
        """Return the experiment that sets `values`, given by the keys of axes and ranges."""
        data = deepcopy(dict(self.base)) | {POLICY: deepcopy(self.entry.data)}
        effective = {self.effective(key): value for key, value in values.items()}
        for key, value in effective.items():
            set_key(data, key, deepcopy(value))
        if self.entry.chosen is not None:
            effective = {POLICY_NAME: self.entry.name, **effective}
        return Point(data, effective, cell, tuple(map(self.effective, self.ranges)))

    def effective(self, key: str) -> str:
        """Return the key with `policy.NAME.parameter` written as `policy.parameter`."""
        return _effective(key, self.entry)


def policy_spaces(base: Mapping[str, Any], sweep: SweepConfig, source: str) -> list[PolicySpace]:
    """Return what varies, for each policy of the config or of the sweep.

    Args:
        base: the config without its `sweep` section, as plain data.
        sweep: what varies.
        source: where the config comes from, for error messages.

    Raises:
        BadInput: a policy or one of its parameters does not exist.
    """
    entries = _policy_entries(base, sweep, source)
    _check_parameters(base, sweep, entries, source)
    return [
        PolicySpace(
            base,
            entry,
            tuple(tuple(_rows(axis, entry)) for axis in sweep.axes),
            {key: of for key, of in sweep.ranges.items() if _applies(key, entry)},
        )
        for entry in entries
    ]


def points(
    base: Mapping[str, Any], sweep: SweepConfig, source: str, saltelli: bool
) -> Iterator[Point]:
    """Yield the points of a sweep in their order.

    Args:
        base: the config without its `sweep` section, as plain data.
        sweep: what varies.
        source: where the config comes from, for error messages.
        saltelli: fill the ranges for Sobol indices: n * (ranges + 2) points a cell.

    Raises:
        BadInput: a policy or one of its parameters does not exist.
    """
    cell = 0
    for space in policy_spaces(base, sweep, source):
        filled = list(_filled(sweep, tuple(space.ranges), saltelli))
        for rows in product(*space.axes):
            values = {key: value for row in rows for key, value in row.items()}
            for ranged in filled:
                yield space.point(values | ranged, cell)
            cell += 1


# -- policies -----------------------------------------------------------------------------------


def _policy_entries(base: Mapping[str, Any], sweep: SweepConfig, source: str) -> list[Entry]:
    """Return the policies: the config's, or those of the sweep's `policy` or `policy.name`."""
    origins = Origins(source)
    chosen = _on_axis(sweep, POLICY_NAME)
    given = base.get(POLICY)
    if chosen is not None:
        if isinstance(given, list):
            raise BadInput(f"{source}: {SECTION}.{POLICY_NAME}: the config lists several policies")
        own = dict(given) if isinstance(given, Mapping) else {}
        data = [_renamed(own, name, source) for name in chosen]
    else:
        chosen = _on_axis(sweep, POLICY)
        listed: list[Any] = given if isinstance(given, list) else [given]
        data = deepcopy(listed if chosen is None else chosen)
    if data == [None]:
        raise BadInput(f"{source}: policy is missing; give it, or {SECTION}.{POLICY_NAME}")
    choices = policy_choices(data, origins)
    return [
        Entry(_written_out(raw), choice.name, choice.label, None if chosen is None else chosen[at])
        for at, (raw, choice) in enumerate(zip(data, choices, strict=True))
    ]


def _on_axis(sweep: SweepConfig, key: str) -> list[Any] | None:
    """Return the distinct values of a key's axis in their order; None: it has none."""
    for axis in sweep.axes:
        if key in axis.keys:
            column = axis.keys.index(key)
            found: list[Any] = []
            for row in axis.rows:
                if row[column] not in found:
                    found.append(row[column])
            return found
    return None


def _renamed(own: Mapping[str, Any], name: Any, source: str) -> dict[str, Any]:
    """Return the config's policy under another name, with the parameters that one has."""
    fields = _parameters(name, source)
    return {"name": name} | {key: value for key, value in own.items() if key in fields}


def _parameters(name: Any, source: str) -> Mapping[str, Any]:
    """Return the parameters of a policy; none if it is no name."""
    if not isinstance(name, str):
        return {}
    try:
        fields: Mapping[str, Any] = policies.load(name).Config.model_fields
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    return fields


def _written_out(raw: Any) -> dict[str, Any]:
    return dict(raw) if isinstance(raw, Mapping) else {"name": raw}


def _check_parameters(
    base: Mapping[str, Any], sweep: SweepConfig, entries: Sequence[Entry], source: str
) -> None:
    """Refuse parameters that no policy has."""
    given = base.get(POLICY)
    own: list[str] = []
    if isinstance(given, Mapping) and _on_axis(sweep, POLICY_NAME) is not None:
        known = _parameters(given.get("name"), source)
        own = [f"{POLICY}.{key}" for key in given if key not in known]
    for key in (*own, *sweep.keys):
        if key in (POLICY, POLICY_NAME, f"{POLICY}.label") or not key.startswith(f"{POLICY}."):
            continue
        if not any(_applies(key, entry) for entry in entries):
            valid = {field for entry in entries for field in _fields(entry)}
            raise BadInput(f"{source}: {unknown_key(key, sorted(valid))}")


def _applies(key: str, entry: Entry) -> bool:
    """Whether a key means something for a policy."""
    effective = _effective(key, entry)
    if not effective.startswith(f"{POLICY}."):
        return True
    return effective.split(".")[1] in _fields(entry)


def _effective(key: str, entry: Entry) -> str:
    """Return the key with `policy.NAME.parameter` written as `policy.parameter`."""
    head, _, rest = key.removeprefix(f"{POLICY}.").partition(".")
    if key.startswith(f"{POLICY}.") and rest and head in (entry.name, entry.label):
        return f"{POLICY}.{rest}"
    return key


def _fields(entry: Entry) -> Mapping[str, Any]:
    return _parameters(entry.name, entry.label)


# -- grid and ranges ----------------------------------------------------------------------------


def _rows(axis: Axis, entry: Entry) -> Iterator[dict[str, Any]]:
    """Yield the distinct rows of an axis, without the keys that mean nothing for the policy."""
    seen: list[dict[str, Any]] = []
    for row in axis.rows:
        given = dict(zip(axis.keys, row, strict=True))
        if any(given.get(key, entry.chosen) != entry.chosen for key in (POLICY, POLICY_NAME)):
            continue
        kept = {
            key: value
            for key, value in given.items()
            if key not in (POLICY, POLICY_NAME) and _applies(key, entry)
        }
        if kept not in seen:
            seen.append(kept)
            yield kept


def _filled(
    sweep: SweepConfig, varied: Sequence[str], saltelli: bool
) -> Iterator[dict[str, float | int]]:
    """Yield the values of the ranges that apply, point by point."""
    if not varied:
        yield {}
        return
    columns = [list(sweep.ranges).index(key) for key in varied]
    ranges: list[Range] = [sweep.ranges[key] for key in varied]
    for row in _design(sweep, columns, saltelli):
        yield {key: r.at(float(u)) for key, r, u in zip(varied, ranges, row, strict=True)}


def _design(sweep: SweepConfig, columns: Sequence[int], saltelli: bool) -> Shares:
    """Return the design of the chosen ranges: those columns of the design of all of them."""
    from scipy.stats import qmc

    options, count = sweep.options, len(sweep.ranges)
    assert options.n is not None, "the section was validated"
    if options.method == "lhs":
        return qmc.LatinHypercube(count, seed=options.seed).random(options.n)[:, columns]
    if not saltelli:
        return qmc.Sobol(count, seed=options.seed).random(options.n)[:, columns]
    pair = qmc.Sobol(2 * count, seed=options.seed).random(options.n)
    return saltelli_design(pair[:, columns], pair[:, [count + c for c in columns]])


def saltelli_design(a: Shares, b: Shares) -> Shares:
    """Return A, B, and A with each column in turn taken from B, one below the other.

    Args:
        a: base sample, shape (n, parameters).
        b: an independent one.
    """
    blocks = [a, b]
    for column in range(a.shape[1]):
        mixed = a.copy()
        mixed[:, column] = b[:, column]
        blocks.append(mixed)
    return np.concatenate(blocks)
