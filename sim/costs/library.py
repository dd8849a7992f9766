"""The shipped profiles, and how a config names one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sim.costs.profile import Profile, as_profile, load_profile, profile_stem
from sim.costs.roofline import roofline
from sim.costs.shipped import read_shipped
from sim.types import BadInput

PROFILE_DIR = Path(__file__).parent / "profiles"

MOST_LISTED = 12
"""Profiles that an error names."""


def list_profiles() -> list[Profile]:
    """Return every shipped profile, by model, GPU, layout and engine."""
    return [_shipped(path.stem) for path in sorted(PROFILE_DIR.glob("*.yaml"))]


def find_profile(model: str, gpu: str, tp: int, pp: int = 1, name: str = "auto") -> Profile:
    """Return the profile of a model on a GPU in a layout.

    Args:
        model: catalogue name of the model.
        gpu: catalogue name of the GPU.
        tp: tensor-parallel degree.
        pp: pipeline stages.
        name: `auto` (the default engine), an engine (`distserve`: the right file for each pool's
            layout), a shipped profile's full name, the path of a YAML file (it contains a `/` or
            ends in `.yaml`), or `roofline` (any pair; peak figures, not measured).

    Raises:
        BadInput: there is none, it is for something else, or the file is malformed.
    """
    if name == "roofline":
        return roofline(model, gpu, tp, pp)
    if "/" in name or name.endswith((".yaml", ".yml")):
        return _checked(load_profile(Path(name)), model, gpu, tp, pp)
    if (PROFILE_DIR / f"{name}.yaml").is_file():
        return _checked(_shipped(name), model, gpu, tp, pp)
    key = profile_stem(model, gpu, tp, pp)
    profiles = [_shipped(path.stem) for path in sorted(PROFILE_DIR.glob(f"{key}_*.yaml"))]
    for profile in profiles:
        if profile.name == f"{key}_{name}" or (name == "auto" and profile.default):
            return profile
    raise _missing(model, gpu, tp, pp, name)


@cache
def _shipped(stem: str) -> Profile:
    path = PROFILE_DIR / f"{stem}.yaml"
    return as_profile(read_shipped(path), path)


def _checked(profile: Profile, model: str, gpu: str, tp: int, pp: int) -> Profile:
    has = (profile.model, profile.gpu, profile.tp, profile.pp)
    if has == (model, gpu, tp, pp):
        return profile
    raise BadInput(
        f"profile {profile.name} is for {_layout(*has)}, the config asks for "
        f"{_layout(model, gpu, tp, pp)}"
    )


def _layout(model: str, gpu: str, tp: int, pp: int) -> str:
    return f"{model} on {gpu} tp {tp}" + (f" pp {pp}" if pp > 1 else "")


def _missing(model: str, gpu: str, tp: int, pp: int, name: str) -> BadInput:
    """Name what there is: for the pair, else for the model, else for the GPU, else all."""
    names = [path.stem for path in sorted(PROFILE_DIR.glob("*.yaml"))]
    scopes = [
        (f"{model} on {gpu}", [n for n in names if n.startswith(f"{model}_{gpu}_")]),
        (model, [n for n in names if n.startswith(f"{model}_")]),
        (gpu, [n for n in names if f"_{gpu}_" in n]),
        ("other models and GPUs", names),
    ]
    scope, there = next(scope for scope in scopes if scope[1])
    wanted = "" if name == "auto" else f" named '{name}'"
    shown = ", ".join(there[:MOST_LISTED])
    if len(there) > MOST_LISTED:
        shown += f" and {len(there) - MOST_LISTED} more (`bucketsim profiles`)"
    return BadInput(
        f"no profile{wanted} for {_layout(model, gpu, tp, pp)}; for {scope} there is: "
        f"{shown}; --roofline works for any pair (not measured)"
    )
