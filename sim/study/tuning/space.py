"""The `sweep` section of a config as the space that `tune` searches.

Lists are choices, ranges are ranges, zipped keys go together, parameters of one policy belong to
that policy only: as in a sweep. `method` and `n` are the sweep's own; `seed` is the sampler's. Only
`policy` and `engine` keys can be tuned: trials have to see the same requests, bounds and GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel

from sim.study.capacity.attainment import rated, requests_notes
from sim.study.config import ABOUT, EngineConfig, Experiment, Origins, overridden, read_config
from sim.study.config import resolve as resolve_config
from sim.study.sweeps.config import SECTION, Range, SweepConfig, sweep_config
from sim.study.sweeps.points import PolicySpace, policy_spaces
from sim.study.validation import unknown_key
from sim.types import BadInput

if TYPE_CHECKING:
    from optuna import Trial

TUNED = ("policy", "engine")
"""Sections whose keys can be tuned."""
WHICH_POLICY = "policy"
"""Name of the choice between policies."""


@dataclass(frozen=True)
class Space:
    """What a search may choose from.

    Attributes:
        source: where the config comes from.
        seed: of the sampler.
        policies: what varies for each policy.
        baseline: the config's own parameters, of its first policy.
        keys: every config key that varies.
        notes: what a reader must know about the requests.
    """

    source: str
    seed: int
    policies: tuple[PolicySpace, ...]
    baseline: Experiment
    keys: tuple[str, ...]
    notes: tuple[str, ...]

    def baseline_values(self) -> dict[str, Any]:
        """Return what the config itself says about the keys that vary for its policy."""
        at = self._own()
        return {} if at is None else _values_of(self.baseline, _keys(self.policies[at]))

    def enqueued(self) -> dict[str, Any] | None:
        """Return the baseline as the sampler's parameters; None: it lies outside the space."""
        at = self._own()
        if at is None:
            return None
        own, values = self.policies[at], self.baseline_values()
        chosen: dict[str, Any] = {WHICH_POLICY: at} if len(self.policies) > 1 else {}
        for number, rows in enumerate(own.axes):
            wanted = [{k: values[own.effective(k)] for k in row} == row for row in rows]
            if True not in wanted:
                return None
            if len(rows) > 1:
                chosen[_axis_name(at, number, rows)] = wanted.index(True)
        for key, of in own.ranges.items():
            value = values[own.effective(key)]
            if not _inside(value, of):
                return None
            chosen[f"{at}:{key}"] = value
        return chosen

    def suggested(self, trial: Trial) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return label, values and config of the sampler's choice."""
        at, several = 0, len(self.policies) > 1
        if several:
            at = int(trial.suggest_categorical(WHICH_POLICY, tuple(range(len(self.policies)))))
        space = self.policies[at]
        values: dict[str, Any] = {}
        for number, rows in enumerate(space.axes):
            row = 0
            if len(rows) > 1:
                name = _axis_name(at, number, rows)
                row = int(trial.suggest_categorical(name, tuple(range(len(rows)))))
            values |= rows[row]
        for key, of in space.ranges.items():
            name = f"{at}:{key}"
            if of.integer:
                values[key] = trial.suggest_int(name, int(of.low), int(of.high), log=of.log)
            else:
                values[key] = trial.suggest_float(name, of.low, of.high, log=of.log)
        point = space.point(values)
        return space.entry.label, point.values, point.data

    def _own(self) -> int | None:
        """Return which policy of the space is the baseline's."""
        own = self.baseline.policies[0]
        matching = [p.entry.label in (own.label, own.name) for p in self.policies]
        return matching.index(True) if True in matching else None


def read_space(path: Path, overrides: Iterable[str] = ()) -> Space:
    """Read a config with a `sweep` section as a search space.

    Args:
        path: a YAML file.
        overrides: `key.sub=value`; `sweep.KEY=…` changes the space.

    Raises:
        BadInput: one line with file, key, value and what would be valid.
    """
    source = str(path)
    data = overridden(read_config(path), list(overrides))
    data.pop(ABOUT, None)
    if SECTION not in data:
        example = f"{SECTION}: {{policy.max_num_seqs: [64, 128, 256]}}"
        raise BadInput(
            f"{source}: {SECTION} is missing: what to choose from, for example {example}"
        )
    section = sweep_config(data.pop(SECTION), Origins(source).where, designed=False)
    for key in section.keys:
        _check_tuned(key, source)
    policies = tuple(policy_spaces(data, section, source))
    _check_choice(section, policies, source)
    baseline = resolve_config(_baseline(data, policies), source)
    notes = tuple(requests_notes(baseline))
    varied = dict.fromkeys(key for space in policies for key in _keys(space))
    return Space(source, section.options.seed, policies, rated(baseline), tuple(varied), notes)


def resolved(data: Mapping[str, Any], source: str) -> Experiment:
    """Return the experiment of a trial, to be judged at any rate."""
    experiment = resolve_config(data, source)
    run = experiment.run.model_copy(update={"warmup": "fixed"})
    return replace(experiment, run=run)


def _check_tuned(key: str, source: str) -> None:
    """Refuse keys that would make trials incomparable, and engine keys that do not exist."""
    section, *path = key.split(".")
    if section not in TUNED:
        raise BadInput(
            f"{source}: {SECTION}.{key}: tune compares trials on the same requests, bounds and "
            f"GPUs: only keys of {' and '.join(TUNED)} can be tuned"
        )
    model: Any = EngineConfig if section == "engine" else None
    for part in path:
        if model is None:
            return
        if part not in model.model_fields:
            raise BadInput(f"{source}: {unknown_key(f'{SECTION}.{key}', model.model_fields)}")
        model = _section(model.model_fields[part].annotation)


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a nested section; None for a plain value."""
    union = get_origin(annotation) in (Union, UnionType)
    for candidate in get_args(annotation) if union else (annotation,):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _check_choice(section: SweepConfig, policies: tuple[PolicySpace, ...], source: str) -> None:
    choices = len(policies) > 1 or bool(section.ranges)
    if not choices and all(len(rows) == 1 for space in policies for rows in space.axes):
        raise BadInput(f"{source}: {SECTION}: one combination only: there is nothing to choose")


def _baseline(base: Mapping[str, Any], policies: tuple[PolicySpace, ...]) -> dict[str, Any]:
    """Return the config with its first policy, or the first of the space if it has none."""
    given = base.get("policy")
    policy = given[0] if isinstance(given, list) and given else given
    return dict(base) | {"policy": policies[0].entry.data if policy is None else policy}


def _keys(space: PolicySpace) -> list[str]:
    """Return the keys that vary for a policy, as in its config."""
    keys = [key for rows in space.axes for key in rows[0]] if space.axes else []
    return list(dict.fromkeys(space.effective(key) for key in (*keys, *space.ranges)))


def _values_of(experiment: Experiment, keys: Iterable[str]) -> dict[str, Any]:
    resolved = experiment.resolved()
    data = {**resolved, "policy": resolved["policy"][0]}
    found = {}
    for key in keys:
        inner: Any = data
        for part in key.split("."):
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        found[key] = inner
    return found


def _inside(value: Any, of: Range) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and of.low <= value <= of.high and (not of.integer or value == int(value))


def _axis_name(policy: int, number: int, rows: tuple[dict[str, Any], ...]) -> str:
    return f"{policy}:{number}:{'+'.join(rows[0])}"
