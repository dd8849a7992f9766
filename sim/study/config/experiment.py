"""One YAML is one experiment: its sections together, and how a file becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import policies
from sim.study.config.cluster import ClusterConfig
from sim.study.config.engine import EngineConfig
from sim.study.config.power import PowerConfig
from sim.study.config.run import RunConfig
from sim.study.config.section import TOO_LARGE, conceivable
from sim.study.config.slo import SloConfig
from sim.study.config.speculative import SpeculativeConfig
from sim.study.presets import fill
from sim.study.statistics.clock import ENGINE
from sim.study.validation import shown, unknown_key, validate
from sim.study.yaml_file import parse_yaml, read_yaml
from sim.types import BadInput
from workloads import WorkloadConfig

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class PolicyChoice:
    """A policy and its parameters.

    Attributes:
        name: name in the registry.
        label: what tables call it; the name, unless two entries share one.
        params: an object of the policy's `Config`.
        key: dotted key of its entry in the config.
    """

    name: str
    label: str
    params: BaseModel
    key: str


@dataclass(frozen=True)
class Origins:
    """Who set which value.

    Attributes:
        file: where the config comes from.
        given: dotted keys of what was set -> the file, `command line` or `preset NAME`.
    """

    file: str
    given: Mapping[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str | None:
        """Return who set a key or something in it; None: nobody."""
        found = {v for k, v in self.given.items() if f"{k}.".startswith(f"{key}.")}
        for first in (COMMAND_LINE, self.file):
            if first in found:
                return first
        return min(found, default=None)

    def where(self, key: str) -> str:
        """Return whom to blame for a key: for a missing one, who alone set what it belongs to."""
        found = self.of(key)
        while found is None and "." in key:
            key = key.rpartition(".")[0]
            within = {v for k, v in self.given.items() if k.startswith(f"{key}.")}
            found = within.pop() if len(within) == 1 else self.file if within else None
        return found or self.file


@dataclass(frozen=True)
class Experiment:
    """A validated experiment; `origins` knows where each value comes from."""

    cluster: ClusterConfig
    policies: tuple[PolicyChoice, ...]
    workload: WorkloadConfig
    slo: SloConfig
    engine: EngineConfig
    run: RunConfig
    origins: Origins
    speculative: SpeculativeConfig | None = None
    power: PowerConfig | None = None

    def resolved(self) -> dict[str, Any]:
        """Return every value, defaults included, as plain data: a config file's content."""
        chosen = [
            {"name": p.name, "label": p.label, **p.params.model_dump(mode="json")}
            for p in self.policies
        ]
        found = {
            "cluster": self.cluster.model_dump(mode="json"),
            "policy": chosen,
            "workload": self.workload.model_dump(mode="json"),
            "slo": self.slo.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
            "run": self.run.model_dump(mode="json"),
        }
        if self.speculative is not None:  # its absence leaves no trace: results keep their names
            found["speculative"] = self.speculative.model_dump(mode="json")
        if self.power is not None:  # its absence leaves no trace: results keep their names
            found["power"] = self.power.model_dump(mode="json")
        return found

    def origin(self, key: str) -> str:
        """Return where a dotted key's value is from: a file, command line, preset or default."""
        if not key.startswith("policy."):
            return self.origins.of(key) or "default"
        _, at, name = key.split(".", 2)
        choice = self.policies[int(at)]
        if name not in ("name", "label") and name not in choice.params.model_fields_set:
            return "default"
        return self.origins.of(f"{choice.key}.{name}") or self.origins.file


REQUIRED = ("cluster", "policy", "workload")
KEYS = ("cluster", "policy", "workload", "slo", "engine", "run", "speculative", "power")
ABOUT = "about"
"""What a run adds to the config it writes; ignored when that file is run again."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment.

    Args:
        path: a YAML file.
        overrides: `key.sub=value`, the value as in YAML; they win over the file.

    Raises:
        BadInput: one line with file, key, value and what would be valid.
    """
    return resolve(read_config(path), str(path), overrides)


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set keys given as `key.sub=value` in `data`, and return it."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise BadInput(f"override {override!r}: expected key.sub=value")
        set_key(data, key, parse_yaml(text, f"override {override!r}"))
    return data


def resolve(
    data: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    swept: Iterable[str] = (),
) -> Experiment:
    """Validate an experiment given as plain data.

    Args:
        data: the sections.
        source: where they come from, for error messages.
        overrides: see `load_config`.
        swept: the keys of `data` that a point of a sweep sets.

    Raises:
        BadInput: one line with file, key, value and what would be valid.
    """
    data = overridden(deepcopy(dict(data)), overrides)
    setters = {f"{override.partition('=')[0]}.": COMMAND_LINE for override in overrides}
    setters |= {f"{key}.": f"{source}: sweep" for key in swept}
    given = {
        leaf: next((by for key, by in setters.items() if f"{leaf}.".startswith(key)), source)
        for leaf in _leaves(data)
    }
    if isinstance(data.get("policy"), (list, str)):
        data["policy"] = _named(data["policy"])
    given |= fill(data, Origins(source, given).where)
    origins = Origins(source, given)
    where = origins.where
    for key in data:
        if key == "sweep":
            raise BadInput(
                f"{where(key)}: sweep: only `bucketsim sweep` and `tune` take it; remove it"
            )
        if key not in (*KEYS, ABOUT):
            from sim.study.keys import home  # which knows the sections of this module

            raise BadInput(f"{where(key)}: {unknown_key(str(key), KEYS, home(str(key)))}")
    for key in REQUIRED:
        if data.get(key) is None:
            raise BadInput(f"{origins.file}: {key} is missing; needed: {', '.join(REQUIRED)}")
    engine = validate(EngineConfig, data.get("engine"), "engine", where)
    power = data.get("power")
    _check_clock(engine, origins)
    return Experiment(
        cluster=validate(ClusterConfig, data["cluster"], "cluster", where),
        policies=policy_choices(data["policy"], origins),
        workload=validate(WorkloadConfig, data["workload"], "workload", where),
        slo=validate(SloConfig, data.get("slo"), "slo", where),
        engine=engine,
        run=validate(RunConfig, data.get("run"), "run", where),
        origins=origins,
        speculative=_speculative(data.get("speculative"), where),
        power=None if power is None else validate(PowerConfig, power, "power", where),
    )


def _speculative(data: Any, where: Callable[[str], str]) -> SpeculativeConfig | None:
    if data is None:
        return None
    return validate(SpeculativeConfig, data, "speculative", where)


def _check_clock(engine: EngineConfig, origins: Origins) -> None:
    key = "engine.api_latency_ms"
    if engine.ttft_clock == ENGINE and engine.api_latency_ms and key in origins.given:
        raise BadInput(
            f"{origins.where(key)}: {key} {engine.api_latency_ms:g} lies outside the engine's "
            "clock; leave it out, or engine.ttft_clock: client"
        )


def more_policies(
    experiment: Experiment, names: Sequence[str], source: str
) -> tuple[PolicyChoice, ...]:
    """Return policies by name, with what the experiment's preset sets of them."""
    data = {
        "policy": _named(list(names)),
        "engine": {"preset": experiment.engine.preset},
        "cluster": {"gpu": experiment.cluster.gpu},
    }
    given = fill(data, lambda _: source)
    return policy_choices(data["policy"], Origins(source, given))


def policy_choices(entries: Any, origins: Origins) -> tuple[PolicyChoice, ...]:
    """Return the policies of the `policy` section: a name, a mapping or a list of them."""
    where = origins.where("policy")
    if entries == []:
        raise BadInput(f"{where}: policy: the list is empty; valid: {', '.join(policies.names())}")
    if isinstance(entries, list):
        chosen = [_choice(entry, f"policy.{at}", origins) for at, entry in enumerate(entries)]
    else:
        chosen = [_choice(entries, "policy", origins)]
    labels = [p.label for p in chosen]
    for label in labels:
        if labels.count(label) > 1:
            raise BadInput(f"{where}: policy: two are called {label!r}; give each its own `label`")
    return tuple(chosen)


def _choice(entry: Any, key: str, origins: Origins) -> PolicyChoice:
    where = origins.where(key)
    params = _named(entry)
    if not isinstance(params, Mapping) or not isinstance(params.get("name"), str):
        raise BadInput(
            f"{where}: {key}: expected a name or a mapping with `name`, got {shown(entry)}; "
            f"valid names: {', '.join(policies.names())}"
        )
    params = dict(params)
    name = params.pop("name")
    label = str(params.pop("label", name))
    if not label.isprintable() or not label or set(label) & set("/\\") or label[0] == ".":
        raise BadInput(f"{where}: {key}.label: {shown(label)} cannot name a folder")
    try:
        config = policies.load(name).Config
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    try:
        chosen = validate(config, params, key, origins.where)
    except BadInput as error:
        strange = [k for k in params if k not in config.model_fields]
        kept = strange and origins.of(f"{key}.{strange[0]}") != COMMAND_LINE
        if not kept or origins.of(f"{key}.name") != COMMAND_LINE:
            raise
        raise BadInput(f"{error}; {key}={name} drops the parameters of the policy before") from None
    for param in chosen.model_fields_set:
        if not conceivable(getattr(chosen, param)):
            path = f"{key}.{param}"
            raise BadInput(
                f"{origins.where(path)}: {path}: {TOO_LARGE}, got {shown(params[param])}"
            )
    return PolicyChoice(name, label, chosen, key)


# -- reading ------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """Return the data of a config file, not yet validated."""
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a mapping with {', '.join(REQUIRED)}, got {shown(data)}")
    return data


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings and lists; a missing mapping is made."""
    *path, last = key.split(".")
    inner: Any = data
    if path[:1] == ["policy"]:
        data["policy"] = _named(data.get("policy"))
    for part in path:
        if isinstance(inner, dict) and inner.get(part) is None:
            inner[part] = {}
        inner = inner[_index(inner, part, key)]
    inner[_index(inner, last, key)] = value


def _named(policy: Any) -> Any:
    """Return the `policy` section with bare names written out as mappings."""
    if isinstance(policy, list):
        return [_named(entry) for entry in policy]
    return {"name": policy} if isinstance(policy, str) else policy


def _index(inner: Any, part: str, key: str) -> str | int:
    """Return `part` as what indexes `inner`."""
    if isinstance(inner, dict):
        return part
    if not isinstance(inner, list):
        raise BadInput(f"override {key!r}: there is no {part!r} in {shown(inner)}")
    if not part.isdecimal() or int(part) >= len(inner):
        raise BadInput(f"override {key!r}: {part!r} is not an index below {len(inner)}")
    return int(part)


def _leaves(data: Any, prefix: str = "") -> list[str]:
    if isinstance(data, dict) and data:
        return [leaf for k, v in data.items() for leaf in _leaves(v, f"{prefix}{k}.")]
    if isinstance(data, list) and data:
        return [leaf for k, v in enumerate(data) for leaf in _leaves(v, f"{prefix}{k}.")]
    return [prefix.rstrip(".")]
