"""Random valid configs of any policy, drawn from its pydantic fields.

A policy file added to `policies/` is covered without an edit here: bounds, choices, options and
nested models are read from the field annotations. Fields that end in `_s` or `_ms` are durations:
they are drawn on the scenario's time scale.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from enum import Enum
from random import Random
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Values = dict[str, Any]
HOOKS: dict[str, Callable[[Random, Values], Values]] = {}
"""By policy name, only for what cannot be read from the fields: changes the drawn values."""

KEEP_DEFAULT = 0.15
MAX_TRIES = 200
KEPT = object()
"""Stands for "leave the default": of a type nobody knows how to draw."""


def random_config(cls: type[BaseModel], rng: Random, unit_s: float, name: str = "") -> BaseModel:
    """Return a random config that `cls` accepts; durations are multiples of `unit_s`.

    One that its validators refuse loses a drawn field at a time, so that fields which exclude each
    other all get their turn, and is drawn again when nothing helps.
    """
    for _ in range(MAX_TRIES):
        values = _values(cls, rng, unit_s)
        if name in HOOKS:
            values = HOOKS[name](rng, values)
        while True:
            try:
                return cls(**values)
            except ValidationError:
                optional = [k for k in values if not cls.model_fields[k].is_required()]
                if not optional:
                    break
                del values[rng.choice(optional)]
    raise AssertionError(f"{MAX_TRIES} random configs of {cls.__name__} were all refused")


def _values(cls: type[BaseModel], rng: Random, unit_s: float) -> Values:
    values = {}
    for key, field in cls.model_fields.items():
        if not field.is_required() and rng.random() < KEEP_DEFAULT:
            continue
        value = _draw(key, field.annotation, field.metadata, field, rng, unit_s)
        if value is not KEPT:
            values[key] = value
    return values


def _draw(
    key: str, kind: Any, metadata: Sequence[Any], field: FieldInfo, rng: Random, unit_s: float
) -> Any:
    origin = get_origin(kind)
    if origin is Literal:
        return rng.choice(get_args(kind))
    if origin in (Union, types.UnionType):
        return _draw(key, rng.choice(get_args(kind)), metadata, field, rng, unit_s)
    if kind is type(None):
        return None
    if kind is bool:
        return rng.random() < 0.5
    if kind is int:
        return _integer(metadata, field, rng)
    if kind is float:
        return _number(key, metadata, field, rng, unit_s)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return rng.choice(list(kind))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return random_config(kind, rng, unit_s)
    if field.is_required():
        raise AssertionError(f"cannot draw {key}: {kind}; add a hook to tests/properties")
    return KEPT


def _bounds(metadata: Sequence[Any], step: float) -> tuple[float | None, float | None]:
    """Return the lowest and highest allowed value; exclusive bounds move inwards by `step`."""
    low: float | None = None
    high: float | None = None
    for bound in metadata:
        if isinstance(bound, annotated_types.Interval):
            return _bounds([b for b in bound if b is not None], step)
        if isinstance(bound, annotated_types.Ge):
            low = bound.ge  # type: ignore[assignment]
        elif isinstance(bound, annotated_types.Gt):
            low = bound.gt + step  # type: ignore[operator]
        elif isinstance(bound, annotated_types.Le):
            high = bound.le  # type: ignore[assignment]
        elif isinstance(bound, annotated_types.Lt):
            high = bound.lt - step  # type: ignore[operator]
    return low, high


def _default(field: FieldInfo, kinds: tuple[type, ...]) -> list[Any]:
    value = field.default
    known = value is not PydanticUndefined and isinstance(value, kinds)
    return [value] if known and not isinstance(value, bool) else []


def _integer(metadata: Sequence[Any], field: FieldInfo, rng: Random) -> int:
    """Draw small numbers, where limits bite, more often than large ones."""
    low, high = _bounds(metadata, 1)
    first = 0 if low is None else int(low)
    steps = [0, 1, 2, rng.randint(1, 8), rng.randint(4, 64), rng.randint(64, 512)]
    value = rng.choice([*[first + step for step in steps], *_default(field, (int,))])
    return int(value if high is None else min(value, int(high)))


def _number(
    key: str, metadata: Sequence[Any], field: FieldInfo, rng: Random, unit_s: float
) -> float:
    scale = unit_s if key.endswith("_s") else unit_s * 1000 if key.endswith("_ms") else 0.0
    low, high = _bounds(metadata, scale or 2**-10)
    first = 0.0 if low is None else low
    if scale:
        value = first + scale * rng.choice([0, 0.5, 1, 2, 5, 20])
    elif high is not None:
        value = rng.choice([first, first + (high - first) * rng.random(), high])
    else:
        value = rng.choice([first, first + rng.random(), first + 10 * rng.random()])
    if not scale and rng.random() < 0.2:
        value = rng.choice([value, *_default(field, (int, float))])
    return float(value if high is None else min(value, high))
