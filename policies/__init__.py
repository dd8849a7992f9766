"""Scheduling policies, one file each. Adding a file here registers it."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from pathlib import Path

from sim.types import BadInput, Policy

ENTRY_POINTS = "bucketsim.policies"
_NOT_POLICIES = {"__init__", "base"}


def names() -> list[str]:
    """Return the names of all policies: files of this folder, then entry points. Imports none."""
    outside = {e.name for e in entry_points(group=ENTRY_POINTS)}
    return sorted(_built_in() | outside)


def load(name: str) -> type[Policy]:
    """Import and return the policy class called `name`; a file of this folder goes first.

    Raises:
        BadInput: no such policy, or its file marks no class with that name.
    """
    if name not in _built_in():
        return _from_outside(name)
    module = importlib.import_module(f"policies.{name.replace('-', '_')}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Policy) and value.name == name:
            return value
    raise BadInput(f"policies/{name.replace('-', '_')}.py marks no class with @policy({name!r})")


def _built_in() -> set[str]:
    stems = {p.stem for p in Path(__file__).parent.glob("*.py")} - _NOT_POLICIES
    return {stem.replace("_", "-") for stem in stems}


def _from_outside(name: str) -> type[Policy]:
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            cls: type[Policy] = entry.load()
            if not (isinstance(cls, type) and issubclass(cls, Policy)):
                raise BadInput(
                    f"policy.name: {entry.value!r} of entry point {name!r} is no subclass of "
                    f"sim.types.Policy, but {cls!r}"
                )
            return cls
    known = names()
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BadInput(f"policy.name: unknown policy {name!r}; {hint}valid: {', '.join(known)}")
