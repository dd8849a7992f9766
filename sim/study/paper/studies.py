"""What ablation and frontier share: their configs start from the paper set, and how they search.

A study's YAML in `results/studies` overrides the paper set as a recipe does, in this order: paper
set, its `padding_free` on the twin, the study, then what belongs to one line. A config key for one
line wins over all of them. On a padding-free engine every policy with an option `padded` is told
so.

Rates are searched in two waves: the first replication from `start_per_s`, the others from where it
crossed. Replication i has the same requests at every rate and under every policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

import policies as registry
from sim.study.build import build
from sim.study.capacity.attainment import BOUNDS
from sim.study.capacity.crossing import LARGEST_STEP, Span
from sim.study.capacity.search import CLOSE
from sim.study.config import Experiment, resolve, set_key
from sim.study.config.section import Section
from sim.study.paper.recipes import Overriding, PaperSet, config_of
from sim.study.paper.units import Found, Progress, Unit, crossing_in, run_units, search_unit
from sim.study.statistics.metrics import MS_PER_S
from sim.types import BadInput

FOLDER = Path("results/studies")
PADDED, PADDING_FREE = "padded", "padding-free"
ENGINES = (PADDED, PADDING_FREE)


class Rates(Section):
    """How rates are searched."""

    start_per_s: float = Field(gt=0, description="where the first replication starts, requests/s")
    least_per_s: float = Field(gt=0, description="lowest rate tried, requests/s")
    most_per_s: float = Field(gt=0, description="highest rate tried, requests/s")
    width: float = Field(gt=0, lt=1, description="of the bisection, relative to its upper end")

    def span(self) -> Span:
        """Return where the first replication searches."""
        return Span(self.start_per_s, LARGEST_STEP, self.least_per_s, self.most_per_s, self.width)


class Study(Overriding):
    """What the YAML of a study has, whatever it is about."""

    title: str = Field(description="above the picture")
    seeds: int = Field(ge=1, description="replications")
    classes: dict[str, str] = Field(description="component of the mixture -> what it is called")
    search: Rates = Field(description="how rates are searched")
    assumptions: tuple[str, ...] = Field((), description="of the caption")


@dataclass(frozen=True)
class Asked:
    """A rate that is looked for.

    Attributes:
        config: the resolved config with one policy, JSON.
        least: share of requests that has to be in time, by class (`ALL`: of all).
    """

    config: str
    least: Mapping[str, float]


def line_config(
    base: PaperSet,
    study: Overriding,
    policy: str,
    engine: str,
    overrides: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the config of one line of a study, as plain data."""
    twin = engine == PADDING_FREE
    data = config_of(base, study, policy, twin)
    if twin and "padded" in registry.load(policy).Config.model_fields:
        set_key(data, "policy.padded", False)
    for given in overrides:
        for key, value in given.items():
            set_key(data, key, deepcopy(value))
    set_key(data, "run.replications", 1)
    return data


def checked(data: Mapping[str, Any], source: str) -> Experiment:
    """Return the experiment of a config that can be run.

    Raises:
        BadInput: one line with file, key and what would be valid.
    """
    experiment = resolve(data, source)
    build(experiment, experiment.policies[0])
    return experiment


def config_text(experiment: Experiment) -> str:
    """Return a resolved config as units have it."""
    return json.dumps(experiment.resolved(), separators=(",", ":"), sort_keys=True)


def searched(
    asked: Sequence[Asked], rates: Rates, seeds: int, folder: Path, jobs: int, progress: Progress
) -> list[list[Found]]:
    """Return what the search of every replication found, for each rate that is looked for."""
    wide = rates.span()
    units = [search_unit(one.config, 0, one.least, wide) for one in asked]
    found = [[first] for first in run_units(units, folder, jobs, progress)]
    others: list[Unit] = []
    for one, (first,) in zip(asked, found, strict=True):
        span = _near(first, wide)
        others += [search_unit(one.config, i, one.least, span) for i in range(1, seeds)]
    rest = iter(run_units(others, folder, jobs, progress))
    for of in found:
        of += [next(rest) for _ in range(1, seeds)]
    return found


def _near(first: Found, wide: Span) -> Span:
    """Return where the other replications search, given what the first has found."""
    if "error" in first:
        return wide
    at = crossing_in(first)
    if not at.low_per_s or at.open:
        return wide
    return replace(wide, start_per_s=at.rate_per_s, step=CLOSE)


def bounds_text(config: str) -> str:
    """Return the bounds of a resolved config in words, those of single classes included."""
    slo = json.loads(config)["slo"]
    said = []
    for name, of in [("", slo), *slo["by"].items()]:
        known = [(k[:-3].upper(), of[k]) for k in BOUNDS if of[k] is not None]
        texts = [f"{key} {value * slo['scale'] / MS_PER_S:g} s" for key, value in known]
        said.append(f"{name} {' and '.join(texts)}".strip())
    return "; ".join(said)


def known_class(name: str, experiment: Experiment, where: str) -> str:
    """Return the name of a component of the mixture.

    Raises:
        BadInput: the workload has no such component.
    """
    from workloads.sources import components

    names = components(experiment.workload)[0]
    if name not in names:
        raise BadInput(f"{where}: classes: no class {name!r}; valid: {', '.join(names)}")
    return name
