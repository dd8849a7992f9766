"""From pydantic's errors to one line that names key, value and valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sim.types import BadInput

M = TypeVar("M", bound=BaseModel)

SHOWN_CHARS = 60
"""A longer value is cut in an error message."""


def validate(model: type[M], data: Any, key: str, where: Callable[[str], str]) -> M:
    """Return `data` as a `model`.

    Args:
        model: what the section has to look like.
        data: the section as it was read.
        key: dotted key of the section, for error messages.
        where: says which file (or the command line) set a key, for error messages.

    Raises:
        BadInput: one line, for the first thing that is wrong.
    """
    try:
        return model.model_validate({} if data is None else data)
    except ValidationError as error:
        path, message = _first_problem(error, model, data, key)
        raise BadInput(f"{where(path)}: {message}") from None


def unknown_key(key: str, valid: Iterable[str], elsewhere: str | None = None) -> str:
    """Return what to say about an unknown key; `elsewhere` is one of that name in another place."""
    names = list(valid)
    near = difflib.get_close_matches(key.rpartition(".")[2], names, 1)
    meant = elsewhere or (near[0] if near else None)
    hint = f"did you mean {meant!r}? " if meant else ""
    return f"unknown key {key!r}; {hint}valid: {', '.join(names)}"


def shown(value: Any) -> str:
    """Return a value as an error message shows it: on one line, cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _first_problem(
    error: ValidationError, model: type[BaseModel], data: Any, key: str
) -> tuple[str, str]:
    """Return the dotted key and what is wrong with it."""
    # An unknown key first: it is often what makes another one missing.
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    loc = problem["loc"]
    path = ".".join([key, *_keys(loc, data)])
    if problem["type"] == "extra_forbidden":
        return path, unknown_key(path, _fields(model, loc[:-1]), _elsewhere(path))
    if problem["type"] == "missing":
        return path, f"{path} is missing"
    if problem["type"].startswith("union_tag"):
        return path, _tag_problem(path, problem["ctx"], _models_at(model, loc))
    message = " ".join(problem["msg"].removeprefix("Value error, ").split())
    if isinstance(problem["input"], Mapping) and problem["type"] == "value_error":
        return path, f"{path}: {message}"
    return path, f"{path}: {message}, got {shown(problem['input'])}"


def _elsewhere(path: str) -> str | None:
    """Return the key of another section with the last name of this one."""
    from sim.study.keys import SECTIONS, home  # they use this module

    return home(path) if path.partition(".")[0] in (*SECTIONS, "policy") else None


def _tag_problem(path: str, ctx: Mapping[str, Any], models: list[type[BaseModel]]) -> str:
    """Return what is wrong with the key that says which member of a union is meant."""
    name = ctx["discriminator"].strip("'")
    tags = [str(tag) for m in models for tag in get_args(m.model_fields[name].annotation)]
    valid = f"valid: {', '.join(tags)}"
    if "tag" not in ctx:
        return f"{path}.{name} is missing; {valid}"
    near = difflib.get_close_matches(str(ctx["tag"]), tags, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{path}.{name}: unknown {shown(ctx['tag'])}; {hint}{valid}"


def _keys(loc: tuple[int | str, ...], data: Any) -> Iterator[str]:
    """Yield the parts of `loc` that are keys of `data`: pydantic adds the tags of unions."""
    for at, part in enumerate(loc):
        inside = part in data if isinstance(data, Mapping) else isinstance(part, int)
        if inside:
            data = data[part]
        elif at < len(loc) - 1 or part == "[key]":
            continue
        yield str(part)


def _fields(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are valid at `loc`; of a union, those of the member it names."""
    return list(dict.fromkeys(name for m in _models_at(model, loc) for name in m.model_fields))


def _models_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    models = [model]
    for part in loc:
        inner = [m for m in models if part in m.model_fields]
        if inner:
            models = [n for m in inner for n in _models_in(m.model_fields[str(part)].annotation)]
        elif any(_is_tagged(m, part) for m in models):
            models = [m for m in models if _is_tagged(m, part)]
    return models


def _is_tagged(model: type[BaseModel], tag: int | str) -> bool:
    """Whether `tag` is how pydantic names this member of a union."""
    if tag == model.__name__:
        return True
    annotations = [f.annotation for f in model.model_fields.values()]
    return any(get_origin(a) is Literal and tag in get_args(a) for a in annotations)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
