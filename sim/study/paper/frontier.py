"""The frontier: the highest rate at which every class is within its bounds, for every policy.

Lines are the registered policies, discovered, each with its defaults on top of the paper set and
on the pools that its roles need; `results/studies/frontier.yaml` says what else. The *capacity* of
a line is the highest rate at which the target share of the requests of each class (and so of all)
meets every bound, at one scale of the bounds. Replication i has the same requests under every
policy, at every scale and rate, so ratios to the baseline are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

import policies as registry
from sim.study.capacity.attainment import ALL
from sim.study.config import PoolConfig, set_key
from sim.study.config.section import Section
from sim.study.paper.recipes import Overrides, PaperSet, read_section
from sim.study.paper.studies import (
    ENGINES,
    FOLDER,
    PADDING_FREE,
    Asked,
    Study,
    checked,
    config_text,
    known_class,
    line_config,
    searched,
)
from sim.study.paper.units import COST_OF_SEARCH, Checks, Found, Progress, checks, crossing_in
from sim.study.policy_facts import policy_facts
from sim.study.statistics.stats import Interval, student_t
from sim.study.validation import unknown_key
from sim.types import BadInput

FILE = FOLDER / "frontier.yaml"
POOLS = "cluster.pools"


class LineText(Section):
    """A line, or how the line of a policy is called."""

    policy: str = Field(description="name in the registry")
    label: str = Field(description="what it is called; once")
    set: Overrides = Field({}, description="dotted config key -> value")


class FrontierFile(Study):
    """`frontier.yaml`."""

    scales: tuple[float, ...] = Field(min_length=1, description="of the bounds")
    attainments: tuple[float, ...] = Field(min_length=1, description="shares of each class")
    baseline: str = Field(description="policy of the line that ratios are formed to")
    layouts: dict[str, tuple[PoolConfig, ...]] = Field({}, description="roles -> pools")
    left_out: dict[str, str] = Field({}, description="policy -> why it is no line")
    never_pad: tuple[str, ...] = Field((), description="policies that are the same on any engine")
    lines: tuple[LineText, ...] = Field((), description="others; those named come first")


@dataclass(frozen=True, eq=False)
class Line:
    """A policy on one engine.

    Attributes:
        engine: one of `ENGINES`.
        policy: its name.
        label: what it is called.
        gpus: that it uses.
        configs: scale -> resolved config, JSON.
    """

    engine: str
    policy: str
    label: str
    gpus: int
    configs: Mapping[float, str]


@dataclass(frozen=True)
class Frontier:
    """A frontier that can be searched.

    Attributes:
        file: what the YAML says.
        seeds: replications.
        lines: every policy that can run, on every engine.
        left_out: policy -> why it is no line.
    """

    file: FrontierFile
    seeds: int
    lines: tuple[Line, ...]
    left_out: Mapping[str, str]

    @property
    def cost(self) -> float:
        """About how much work it is."""
        points = len(self.file.scales) * len(self.file.attainments)
        configs = {config for line in self.lines for config in line.configs.values()}
        share = len(configs) / len(self.file.scales)
        return share * points * self.seeds * COST_OF_SEARCH


@dataclass(frozen=True)
class Point:
    """The capacity of a line.

    Attributes:
        line: of which.
        scale: of the bounds.
        attainment: share of each class.
        values: requests per second, of each replication; 0: no rate reaches the target.
        capacity: mean and interval.
        ratio: paired ratio to the baseline; NaN where that has none.
        at_least: even the highest rate tried reaches the target in some replication.
        why: what keeps it from the target where a replication reaches it at no rate; "": nothing.
    """

    line: Line
    scale: float
    attainment: float
    values: tuple[float, ...]
    capacity: Interval
    ratio: Interval
    at_least: bool
    why: str


@dataclass(frozen=True)
class FrontierResult:
    """What came out.

    Attributes:
        frontier: what was asked.
        points: by line, attainment and scale.
        checks: of the searches; capacities of those that failed are undefined.
    """

    frontier: Frontier
    points: tuple[Point, ...]
    checks: Checks


# -- planning -----------------------------------------------------------------------------------


def plan_frontier(
    base: PaperSet, path: Path = FILE, seeds: int | None = None, engines: Sequence[str] = ENGINES
) -> Frontier:
    """Read a frontier, discover the policies and validate every line.

    Args:
        base: the paper set.
        path: its YAML.
        seeds: replications; None: as it says.
        engines: which.

    Raises:
        BadInput: one line with file, key and what would be valid.
    """
    file: FrontierFile = read_section(FrontierFile, path, "frontier")
    _check(file, str(path))
    left_out = dict(file.left_out)
    lines: list[Line] = []
    for text in _texts(file):
        try:
            lines += [_line(base, file, text, engine, str(path)) for engine in engines]
        except BadInput as error:
            if text in file.lines:
                raise
            left_out[text.policy] = str(error)
    lines.sort(key=lambda line: engines.index(line.engine))
    return Frontier(file, seeds or file.seeds, tuple(lines), left_out)


def _check(file: FrontierFile, path: str) -> None:
    known = registry.names()
    named = [*(text.policy for text in file.lines), *file.left_out, *file.never_pad]
    for name in (*named, file.baseline):
        if name not in known:
            raise BadInput(f"{path}: {unknown_key(name, known)}")
    labels = [text.label for text in _texts(file)]
    for label in labels:
        if labels.count(label) > 1:
            raise BadInput(f"{path}: lines: label {label!r} stands twice; labels are unique")
    for share in file.attainments:
        if not 0 < share <= 1:
            raise BadInput(f"{path}: attainments: {share:g}; valid: above 0, up to 1")
    for scale in file.scales:
        if not scale > 0:
            raise BadInput(f"{path}: scales: {scale:g}; valid: above 0")


def _texts(file: FrontierFile) -> list[LineText]:
    """Return the lines that are named, then the policies that were discovered."""
    named = {text.policy for text in file.lines} | set(file.left_out)
    others = [LineText(policy=n, label=n) for n in registry.names() if n not in named]
    return [*file.lines, *others]


def _line(base: PaperSet, file: FrontierFile, text: LineText, engine: str, path: str) -> Line:
    same = text.policy in file.never_pad  # then both engines share what was run
    data = line_config(base, file, text.policy, PADDING_FREE if same else engine, [])
    roles = policy_facts(registry.load(text.policy)).roles
    if roles in file.layouts and POOLS not in base.by_policy.get(text.policy, {}):
        pools = [pool.model_dump(mode="json") for pool in file.layouts[roles]]
        set_key(data, POOLS, pools)
    for key, value in text.set.items():
        set_key(data, key, value)
    configs: dict[float, str] = {}
    gpus = 0
    for scale in file.scales:
        set_key(data, "slo.scale", scale)
        experiment = checked(data, f"{path}: line {text.label!r}")
        for name in file.classes:
            known_class(name, experiment, path)
        configs[scale] = config_text(experiment)
        gpus = _gpus(experiment.resolved())
    return Line(engine, text.policy, text.label, gpus, configs)


def _gpus(config: Mapping[str, Any]) -> int:
    pools = config["cluster"]["pools"]
    if pools is None:
        return int(config["cluster"]["count"])
    return sum(int(pool["instances"] * pool["tp"] * pool["pp"]) for pool in pools)


# -- running ------------------------------------------------------------------------------------


def run_frontier(frontier: Frontier, folder: Path, jobs: int, progress: Progress) -> FrontierResult:
    """Search what has no result yet, and put everything together.

    Args:
        frontier: what to search.
        folder: where its units are kept.
        jobs: local processes.
        progress: counts.
    """
    file = frontier.file
    at = [
        (line, share, scale)
        for line in frontier.lines
        for share in file.attainments
        for scale in file.scales
    ]
    asked = [
        Asked(line.configs[scale], dict.fromkeys((ALL, *file.classes), share))
        for line, share, scale in at
    ]
    found = searched(asked, file.search, frontier.seeds, folder, jobs, progress)
    shared = {(one.config, *one.least.items()): of for one, of in zip(asked, found, strict=True)}
    every = [one for of in shared.values() for one in of]
    return FrontierResult(frontier, tuple(_points(file, at, found)), checks(every))


def _points(
    file: FrontierFile,
    at: Sequence[tuple[Line, float, float]],
    found: Sequence[Sequence[Found]],
) -> Iterator[Point]:
    rates = [
        tuple(math.nan if "error" in one else crossing_in(one).rate_per_s for one in of)
        for of in found
    ]
    base = {
        (line.engine, share, scale): values
        for (line, share, scale), values in reversed(list(zip(at, rates, strict=True)))
        if line.policy == file.baseline
    }
    for (line, share, scale), values, of in zip(at, rates, found, strict=True):
        others = base.get((line.engine, share, scale), (math.nan,) * len(values))
        pairs = zip(values, others, strict=True)
        ratio = student_t([mine / other if other else math.nan for mine, other in pairs])
        reasons = [str(one["why"]) for one in of if "why" in one]
        why = reasons[0] if reasons else ""
        at_least = max(values) >= file.search.most_per_s
        yield Point(line, scale, share, values, student_t(values), ratio, at_least, why)
