"""Engines by version: named sets of engine and policy keys (`presets.yaml`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sim.costs.catalogue import gpus
from sim.study.validation import shown
from sim.study.yaml_file import read_yaml
from sim.types import BadInput

FILE = Path(__file__).with_name("presets.yaml")

LARGE_GPU_BYTES = 70 * 2**30
NOT_LARGE = "a100"
"""What vLLM calls a large GPU (`EngineArgs.get_batch_defaults`)."""


@dataclass(frozen=True)
class Value:
    """What a preset sets a key to.

    Attributes:
        value: on most GPUs.
        large_gpu: on large ones.
        source: where both come from.
    """

    value: Any
    large_gpu: Any
    source: str


@dataclass(frozen=True)
class Preset:
    """An engine of some version.

    Attributes:
        name: what configs call it.
        about: one line.
        engine: values by key of the `engine` section.
        policy: name of the policy that schedules as it does.
        params: values by key of that policy.
    """

    name: str
    about: str
    engine: Mapping[str, Value]
    policy: str
    params: Mapping[str, Value]

    @property
    def origin(self) -> str:
        """What is named as the origin of its values."""
        return f"preset {self.name}"

    def engine_values(self, gpu: Any) -> dict[str, Any]:
        """Return the engine keys it sets on a GPU, called by its catalogue name."""
        return _values(self.engine, gpu)

    def params_of(self, policy: Any, gpu: Any) -> dict[str, Any]:
        """Return the keys it sets of a policy, called by its name: none of another than its own."""
        return _values(self.params, gpu) if policy == self.policy else {}


def names() -> tuple[str, ...]:
    """Return the names of all presets."""
    return tuple(_presets())


def preset_named(name: Any) -> Preset:
    """Return a preset.

    Raises:
        BadInput: there is none of that name.
    """
    found = _presets().get(name) if isinstance(name, str) else None
    if found is None:
        valid = ", ".join(names())
        raise BadInput(f"engine.preset: {shown(name)} is no preset; valid: {valid}")
    return found


def fill(data: dict[str, Any], where: Callable[[str], str]) -> dict[str, str]:
    """Add what the preset of a config sets and the config does not.

    Args:
        data: the config, plain, with policies written out as mappings; changed in place.
        where: says who set a key, for error messages.

    Returns:
        The dotted keys that were added -> their origin.

    Raises:
        BadInput: there is no such preset.
    """
    engine = data.get("engine")
    if not isinstance(engine, dict) or engine.get("preset") is None:
        return {}
    try:
        preset = preset_named(engine["preset"])
    except BadInput as error:
        raise BadInput(f"{where('engine.preset')}: {error}") from None
    cluster = data.get("cluster")
    gpu = cluster.get("gpu") if isinstance(cluster, dict) else None
    added = _add(engine, preset.engine_values(gpu), "engine")
    if data.get("policy") is None:
        data["policy"] = {}
    if isinstance(data["policy"], dict):
        added += _add(data["policy"], {"name": preset.policy}, "policy")
    listed = isinstance(data["policy"], list)
    for at, entry in enumerate(data["policy"] if listed else [data["policy"]]):
        if isinstance(entry, dict):
            values = preset.params_of(entry.get("name"), gpu)
            added += _add(entry, values, f"policy.{at}" if listed else "policy")
    return dict.fromkeys(added, preset.origin)


def _add(section: dict[str, Any], values: Mapping[str, Any], prefix: str) -> list[str]:
    """Set the keys that are missing; return them, dotted."""
    new = {key: value for key, value in values.items() if key not in section}
    section.update(new)
    return [f"{prefix}.{key}" for key in new]


@cache
def _presets() -> dict[str, Preset]:
    found = {}
    for name, data in read_yaml(FILE).items():
        policy = dict(data["policy"])
        of = policy.pop("name")
        found[name] = Preset(name, data["about"], _read(data["engine"]), of, _read(policy))
    return found


def _read(section: Mapping[str, Mapping[str, Any]]) -> dict[str, Value]:
    return {
        key: Value(entry["value"], entry.get("large_gpu", entry["value"]), entry["source"])
        for key, entry in section.items()
    }


def _values(section: Mapping[str, Value], gpu: Any) -> dict[str, Any]:
    large = _is_large(gpu)
    return {key: of.large_gpu if large else of.value for key, of in section.items()}


def _is_large(gpu: Any) -> bool:
    found = gpus().get(gpu) if isinstance(gpu, str) else None  # an unknown one is refused later
    return found is not None and found.memory_bytes >= LARGE_GPU_BYTES and NOT_LARGE not in gpu
