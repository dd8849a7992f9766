"""`config.yaml` of a result: every value, where it came from, and what it was run with."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections import Counter
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sim import __version__
from sim.costs.profile import profile_hash
from sim.study.build import Setup
from sim.study.config import ABOUT, Experiment

PACKAGES = ("simpy", "numpy", "scipy", "pandas", "pyarrow", "pydantic")
"""Those whose versions could change a result."""

ENGINE = (
    "policies", "workloads", "sim/types", "sim/core", "sim/costs",
    "sim/study/config", "sim/study/statistics",
    "sim/study/build.py", "sim/study/power.py", "sim/study/run.py", "sim/study/speculative.py",
)  # fmt: skip
"""What decides the result of a run, beside its config."""


def config_text(experiment: Experiment, setup: Setup) -> str:
    """Return the resolved config as YAML; run again, it gives the same results.

    A comment behind each value says where it came from, or what an open one was resolved to.
    """
    lines = _lines(experiment.resolved(), experiment, _resolved(setup))
    about = yaml.safe_dump({ABOUT: _about(setup)}, sort_keys=False, allow_unicode=True)
    return "\n".join(lines) + "\n" + about


def settings_of(experiment: Experiment, setup: Setup) -> dict[str, dict[str, Any]]:
    """Return every value by dotted key: `value`, and `from`, which is as in `config_text`."""
    resolved = _resolved(setup)
    found: dict[str, dict[str, Any]] = {}

    def walk(data: Any, prefix: str) -> None:
        for name, value in data.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and value:
                walk(value, f"{key}.")
            else:
                found[key] = {"value": value, "from": _origin(experiment, resolved, key)}

    data = experiment.resolved()
    chosen = data.pop("policy")
    walk(data, "")
    for at, entry in enumerate(chosen):
        walk(entry, f"policy.{at}.")
    return found


def _origin(experiment: Experiment, resolved: dict[str, str], key: str) -> str:
    origin = experiment.origin(key)
    return " ".join((resolved.get(key, origin) if origin == "default" else origin).split())


def _about(setup: Setup) -> dict[str, Any]:
    profiles = {i.costs.profile.name: i.costs.profile for i in setup.instances}
    return {
        "bucketsim": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "profiles": {name: profile_hash(profile) for name, profile in profiles.items()},
        "instances": _layout(setup),
        "notes": list(setup.notes),
    }


def _layout(setup: Setup) -> list[dict[str, Any]]:
    """Return what the instances are, equal ones counted."""
    found: list[dict[str, Any]] = []
    for info, count in Counter(setup.instances).items():
        pool, costs = info.pool, info.costs
        row = {"count": count, "role": pool.role, "gpu": info.gpu, "tp": pool.tp, "pp": pool.pp}
        for key in ("num_gpu_blocks", "block_size", "max_model_len"):
            row[key] = getattr(costs, key)
        found.append({**row, "profile": costs.profile.name})
    return found


@cache
def git_revision() -> str | None:
    """Return the commit of the source tree, marked `+` when it was changed; None outside git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip()


@cache
def engine_hash() -> str:
    """Return a hash of the code and the tables that decide the result of a run (`ENGINE`)."""
    root, found = Path(__file__).parents[2], hashlib.sha256()
    parts = [path for part in ENGINE for path in (root / part, *(root / part).rglob("*"))]
    for path in sorted(path for path in parts if path.suffix in (".py", ".yaml")):
        found.update(path.relative_to(root).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _resolved(setup: Setup) -> dict[str, str]:
    """Return what values that were left open came to, by key."""
    pools = [f"{p['count']} x {p['role']} {p['gpu']} tp {p['tp']}" for p in _layout(setup)]
    costs = [i.costs for i in setup.instances]
    return {
        "cluster.profile": _listed(c.profile.name for c in costs),
        "cluster.pools": f"policy: {_listed(pools)}",
        "engine.block_size": f"profile: {_listed(c.block_size for c in costs)}",
        "engine.num_gpu_blocks": f"profile: {_listed(c.num_gpu_blocks for c in costs)}",
        "engine.max_model_len": f"model or workload: {_listed(c.max_model_len for c in costs)}",
    }


def _listed(values: Any) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def _lines(
    data: Any, experiment: Experiment, resolved: dict[str, str], prefix: str = "", indent: str = ""
) -> list[str]:
    """Return YAML lines of nested mappings; the leaves carry comments."""
    lines = []
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{_flow(name)}:")
            lines += _lines(value, experiment, resolved, f"{key}.", indent + "  ")
        elif key == "policy":
            lines.append("policy:")
            for at, entry in enumerate(value):
                inner = _lines(entry, experiment, resolved, f"policy.{at}.", "    ")
                lines += ["  - " + inner[0].lstrip(), *inner[1:]]
        else:
            origin = _origin(experiment, resolved, key)
            lines.append(f"{indent}{_flow(name)}: {_flow(value)}  # {origin}")
    return lines


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").replace("\n", " ")
