"""The ablation: what each component of a batching policy is worth, alone and beside others.

A variant is data (`results/studies/ablation.yaml`): a policy and the components it has. Measured
are, of every variant, on an engine that pads and on one that does not:

* offline, all requests at t = 0: requests and tokens per second, mean time to first token of each
  class;
* the highest rate at which a share of the requests is within every bound: of all requests, of each
  class alone, and of every class, which is the lowest of these (where every class reaches the
  share, all requests do).

Differences are paired: replication i has the same requests in every variant. A *contrast* is the
difference of two variants that differ in one component only: one has it and the other has not
(`alone` if the other has nothing), or it has another value than the first one listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from sim.study.capacity.attainment import ALL
from sim.study.config import set_key
from sim.study.config.section import Section
from sim.study.paper.recipes import Overrides, PaperSet, read_section
from sim.study.paper.studies import (
    ENGINES,
    FOLDER,
    Asked,
    Study,
    checked,
    config_text,
    known_class,
    line_config,
    searched,
)
from sim.study.paper.units import (
    COST_OF_RUN,
    COST_OF_SEARCH,
    Checks,
    Found,
    Progress,
    checks,
    crossing_in,
    offline_unit,
    run_units,
)
from sim.study.statistics.stats import Interval, student_t
from sim.study.validation import unknown_key
from sim.types import BadInput

FILE = FOLDER / "ablation.yaml"
REQUESTS, TOKENS, EVERY = "offline_requests", "offline_tokens", "rate_every"
"""Names of measures; others are `rate_all`, `rate_CLASS` and `ttft_CLASS`."""
RATE, TTFT, OF_ALL = "rate_", "ttft_", "rate_all"
MS_PER_S = 1e3


class Value(Section):
    """A component with its value."""

    what: str = Field(description="in words, as a sentence takes it")
    set: dict[str, Overrides] = Field(description="policy that can have it -> keys it sets")


class Setting(Section):
    """Circumstances in which variants are compared."""

    what: str = Field(description="in words")
    set: Overrides = Field({}, description="dotted config key -> value")


class Variant(Section):
    """One variant."""

    label: str = Field(description="what tables call it; once in a setting")
    policy: str = Field(description="name in the registry")
    has: dict[str, str] = Field(description="component -> its value")
    setting: str = Field("", description="one of `settings`; none: the first")


class AblationFile(Study):
    """`ablation.yaml`."""

    offline: Overrides = Field(description="keys of the offline runs")
    attainment: float = Field(gt=0, le=1, description="share of requests within every bound")
    bare: dict[str, Overrides] = Field(description="policy -> keys that switch every component off")
    components: dict[str, dict[str, Value]] = Field(description="component -> value -> what it is")
    settings: dict[str, Setting] = Field(min_length=1, description="the first is the main one")
    variants: tuple[Variant, ...] = Field(min_length=1, description="in the order drawn")
    highlights: tuple[str, ...] = Field((), description="labels that the summary speaks of")


@dataclass(frozen=True, eq=False)
class Line:
    """One variant on one engine.

    Attributes:
        engine: one of `ENGINES`.
        setting: name of its circumstances.
        variant: which one.
        offline: resolved config of its offline run, JSON.
        online: resolved config of its searches, JSON.
    """

    engine: str
    setting: str
    variant: Variant
    offline: str
    online: str


@dataclass(frozen=True)
class Ablation:
    """An ablation that can be run.

    Attributes:
        file: what the YAML says.
        seeds: replications.
        lines: every variant on every engine.
    """

    file: AblationFile
    seeds: int
    lines: tuple[Line, ...]

    @property
    def cost(self) -> float:
        """About how much work it is."""
        return len(self.lines) * self.seeds * (COST_OF_RUN + len(self.targets) * COST_OF_SEARCH)

    @property
    def targets(self) -> dict[str, dict[str, float]]:
        """What is looked for: measure -> share of requests that has to be in time, by class."""
        share = self.file.attainment
        return {OF_ALL: {ALL: share}} | {
            f"{RATE}{called}": {name: share} for name, called in self.file.classes.items()
        }


@dataclass(frozen=True)
class Measured:
    """A measure of a line.

    Attributes:
        line: of which.
        measure: its name.
        values: of each replication.
        mean: of them, with interval.
        percent: paired difference to the bare variant of its setting, per cent of that.
        at_least: even the highest rate tried reaches the target in some replication.
    """

    line: Line
    measure: str
    values: tuple[float, ...]
    mean: Interval
    percent: Interval
    at_least: bool


@dataclass(frozen=True)
class Contrast:
    """What a component adds to a variant.

    Attributes:
        line: the variant that has it.
        base: the one that has not, or has another value of it.
        component: which.
        value: of it.
        instead_of: the other's value; "": it has none.
        percent: measure -> paired difference, per cent of the other; undefined where it is open.
        at_least: measures whose difference is a lower bound.
    """

    line: Line
    base: Line
    component: str
    value: str
    instead_of: str
    percent: Mapping[str, Interval]
    at_least: frozenset[str]

    @property
    def alone(self) -> bool:
        """Whether there is nothing else."""
        return len(self.line.variant.has) == 1 and not self.instead_of


@dataclass(frozen=True)
class AblationResult:
    """What came out.

    Attributes:
        ablation: what was asked.
        measured: in the order of the lines.
        contrasts: likewise.
        why: line without a rate -> what keeps it from the target, by measure.
        urgent: line with priorities -> mean time to first token offline of each, by priority,
            seconds.
        checks: of the searches; measures of units that failed are undefined.
    """

    ablation: Ablation
    measured: tuple[Measured, ...]
    contrasts: tuple[Contrast, ...]
    why: Mapping[tuple[Line, str], str]
    urgent: Mapping[Line, Mapping[str, Interval]]
    checks: Checks

    def of(self, line: Line, measure: str) -> Measured:
        """Return a measure of a line."""
        return next(m for m in self.measured if m.line is line and m.measure == measure)


# -- planning -----------------------------------------------------------------------------------


def plan_ablation(
    base: PaperSet, path: Path = FILE, seeds: int | None = None, engines: Sequence[str] = ENGINES
) -> Ablation:
    """Read an ablation and validate every variant.

    Args:
        base: the paper set.
        path: its YAML.
        seeds: replications; None: as it says.
        engines: which.

    Raises:
        BadInput: one line with file, key and what would be valid.
    """
    file: AblationFile = read_section(AblationFile, path, "ablation")
    _check(file, str(path))
    lines = []
    for engine in engines:
        for variant in file.variants:
            where = f"{path}: variant {variant.label!r}"
            setting = variant.setting or next(iter(file.settings))
            layers = (file.bare[variant.policy], *_sets(file, variant), file.settings[setting].set)
            data = line_config(base, file, variant.policy, engine, layers)
            online = checked(data, where)
            for key, value in file.offline.items():
                set_key(data, key, value)
            for name in file.classes:
                known_class(name, online, str(path))
            texts = config_text(checked(data, where)), config_text(online)
            lines.append(Line(engine, setting, variant, *texts))
    return Ablation(file, seeds or file.seeds, tuple(lines))


def _check(file: AblationFile, path: str) -> None:
    seen: set[tuple[str, str]] = set()
    first = next(iter(file.settings))
    for variant in file.variants:
        where = f"{path}: variant {variant.label!r}"
        setting = variant.setting or first
        if setting not in file.settings:
            raise BadInput(f"{where}: setting: {unknown_key(setting, file.settings)}")
        if variant.policy not in file.bare:
            raise BadInput(f"{where}: policy: {unknown_key(variant.policy, file.bare)} (in bare)")
        if (setting, variant.label) in seen:
            raise BadInput(f"{where}: twice in setting {setting}; labels are unique there")
        seen.add((setting, variant.label))
        _check_components(file, variant, where)
    labels = dict.fromkeys(variant.label for variant in file.variants)
    for label in file.highlights:
        if label not in labels:
            raise BadInput(f"{path}: highlights: no variant {label!r}; valid: {', '.join(labels)}")
    for setting in file.settings:
        if not any((v.setting or first) == setting and not v.has for v in file.variants):
            raise BadInput(
                f"{path}: settings: {setting!r} has no variant with `has: {{}}` to compare with"
            )


def _check_components(file: AblationFile, variant: Variant, where: str) -> None:
    keys: dict[str, str] = {}
    for component, value in variant.has.items():
        if component not in file.components:
            raise BadInput(f"{where}: has: {unknown_key(component, file.components)}")
        values = file.components[component]
        if value not in values:
            raise BadInput(f"{where}: has.{component}: {unknown_key(value, values)}")
        if variant.policy not in values[value].set:
            valid = ", ".join(values[value].set)
            raise BadInput(
                f"{where}: has.{component}: policy {variant.policy} has no {value}; those that "
                f"have it: {valid}"
            )
        for key in values[value].set[variant.policy]:
            if key in keys:
                raise BadInput(f"{where}: has: {keys[key]} and {component} both set {key}")
            keys[key] = component


def _sets(file: AblationFile, variant: Variant) -> Iterator[Overrides]:
    for component, value in variant.has.items():
        yield file.components[component][value].set[variant.policy]


# -- running ------------------------------------------------------------------------------------


def run_ablation(ablation: Ablation, folder: Path, jobs: int, progress: Progress) -> AblationResult:
    """Run what has no result yet, and put everything together.

    Args:
        ablation: what to run.
        folder: where its units are kept.
        jobs: local processes.
        progress: counts.
    """
    seeds, targets = ablation.seeds, ablation.targets
    units = [offline_unit(line.offline, i) for line in ablation.lines for i in range(seeds)]
    offline = iter(run_units(units, folder, jobs, progress))
    asked = [Asked(line.online, least) for line in ablation.lines for least in targets.values()]
    rates = iter(searched(asked, ablation.file.search, seeds, folder, jobs, progress))
    values: dict[Line, dict[str, list[float]]] = {}
    why: dict[tuple[Line, str], str] = {}
    urgent: dict[Line, dict[str, Interval]] = {}
    every: list[Found] = []
    for line in ablation.lines:
        runs = [next(offline) for _ in range(seeds)]
        found = {measure: next(rates) for measure in targets}
        every += [*runs, *(one for of in found.values() for one in of)]
        values[line] = _offline_values(runs, ablation.file.classes) | _rates(found)
        by_priority = _by_priority(runs)
        if len(by_priority) > 1:
            urgent[line] = by_priority
        for measure, of in found.items():
            reasons = [str(one["why"]) for one in of if "why" in one]
            if reasons:
                why[line, measure] = reasons[0]
    measured = _measured(values, ablation.file.search.most_per_s)
    contrasts = _contrasts(ablation, values)
    return AblationResult(ablation, tuple(measured), tuple(contrasts), why, urgent, checks(every))


def _offline_values(runs: Sequence[Found], classes: Mapping[str, str]) -> dict[str, list[float]]:
    found = {
        REQUESTS: [float(of.get("request_throughput", math.nan)) for of in runs],
        TOKENS: [float(of.get("total_token_throughput", math.nan)) for of in runs],
    }
    for name, called in classes.items():
        times_ms = [of.get("mean_ttft_ms", {}).get(name) for of in runs]
        found[f"{TTFT}{called}"] = [math.nan if t is None else t / MS_PER_S for t in times_ms]
    return found


def _by_priority(runs: Sequence[Found]) -> dict[str, Interval]:
    known = [of.get("mean_ttft_ms_by_priority", {}) for of in runs]
    names = sorted({name for of in known for name in of}, key=int)
    return {
        name: student_t([math.nan if of.get(name) is None else of[name] / MS_PER_S for of in known])
        for name in names
    }


def _rates(found: Mapping[str, Sequence[Found]]) -> dict[str, list[float]]:
    rates = {
        measure: [math.nan if "error" in one else crossing_in(one).rate_per_s for one in of]
        for measure, of in found.items()
    }
    return rates | {EVERY: [min(of) for of in zip(*rates.values(), strict=True)]}


def _measured(
    values: Mapping[Line, Mapping[str, Sequence[float]]], most_per_s: float
) -> Iterator[Measured]:
    for line, measures in values.items():
        base = values[bare_of(line, values)]
        for measure, of in measures.items():
            percent = paired_percent(of, base[measure])
            at_least = is_open(measure, of, most_per_s)
            yield Measured(line, measure, tuple(of), student_t(of), percent, at_least)


def bare_of(line: Line, lines: Mapping[Line, Any]) -> Line:
    """Return the variant without components of a line's engine and setting."""
    alike = (line.engine, line.setting)
    return next(b for b in lines if (b.engine, b.setting) == alike and not b.variant.has)


def paired_percent(of: Sequence[float], base: Sequence[float]) -> Interval:
    """Return the mean difference in per cent of the base, replication by replication."""
    pairs = zip(of, base, strict=True)
    return student_t([(mine / other - 1) * 100 if other else math.nan for mine, other in pairs])


def _contrasts(
    ablation: Ablation, values: Mapping[Line, Mapping[str, Sequence[float]]]
) -> Iterator[Contrast]:
    for line in ablation.lines:
        for component, value in line.variant.has.items():
            rest = {k: v for k, v in line.variant.has.items() if k != component}
            first = next(iter(ablation.file.components[component]))
            for other in ("", first) if value != first else ("",):
                base = _partner(ablation, line, rest | ({component: other} if other else {}))
                if base is not None:
                    most_per_s = ablation.file.search.most_per_s
                    percent, at_least = _against(values[line], values[base], most_per_s)
                    yield Contrast(line, base, component, value, other, percent, at_least)


def _against(
    mine: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]], most_per_s: float
) -> tuple[dict[str, Interval], frozenset[str]]:
    """Return the differences of measures, and which are lower bounds."""
    open_ended = [measure for measure in mine if is_open(measure, mine[measure], most_per_s)]
    percent = {}
    for measure, of in mine.items():
        other = base[measure]
        if is_open(measure, other, most_per_s):
            other = [math.nan] * len(other)
        percent[measure] = paired_percent(of, other)
    return percent, frozenset(open_ended)


def is_open(measure: str, values: Sequence[float], most_per_s: float) -> bool:
    """Whether even the highest rate tried reaches the target in some replication."""
    return measure.startswith(RATE) and max(values) >= most_per_s


def _partner(ablation: Ablation, line: Line, on: Mapping[str, str]) -> Line | None:
    """Return the variant with these components, rather one of the same policy."""
    alike = [
        other
        for other in ablation.lines
        if (other.engine, other.setting) == (line.engine, line.setting) and other.variant.has == on
    ]
    same = [other for other in alike if other.variant.policy == line.variant.policy]
    return next(iter([*same, *alike]), None)
