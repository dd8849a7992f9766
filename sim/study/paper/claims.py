"""The claims of the paper judged: ours under the paper set, under every setting, the verdict.

The paper set is run as the recipes of the figures say, with more replications; the settings are run
with less effort (`assumptions.yaml` says how much), and so is the paper set once more, as a check.
Every ratio is formed in each replication: the policies saw the same requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sim.study.paper.assumptions import (
    PAPER_SET,
    Assumptions,
    Pair,
    Setting,
    grid,
    settings,
)
from sim.study.paper.measures import claimed_value, figures_of, needed
from sim.study.paper.numbers import Claim, Paper
from sim.study.paper.probes import Probe, Probed, new_probe, probe_all, replications
from sim.study.paper.recipes import FOLDER, PaperSet, Recipe, read_paper_set, read_recipe
from sim.study.paper.verdict import JOINT, Verdict, judge
from sim.study.paper.verdict import Setting as Seen
from sim.study.statistics.stats import Interval, student_t

Told = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Study:
    """What is judged, and how.

    Attributes:
        paper: its numbers and claims.
        assumptions: what it leaves open.
        base: the paper set.
        recipes: of the figures that claims are about, by name.
    """

    paper: Paper
    assumptions: Assumptions
    base: PaperSet
    recipes: Mapping[str, Recipe]


@dataclass(frozen=True)
class Judged:
    """A claim with ours.

    Attributes:
        claim: the paper's.
        ours: under the paper set.
        check: the same, with the effort of the settings.
        settings: ours under other assumptions.
        verdict: on all of it.
    """

    claim: Claim
    ours: Interval
    check: Interval
    settings: tuple[Seen, ...]
    verdict: Verdict

    def alone(self) -> dict[str, list[Seen]]:
        """Return the settings that change one assumption, by its name."""
        found: dict[str, list[Seen]] = {}
        for one in self.settings:
            if one.assumption != JOINT:
                found.setdefault(one.assumption, []).append(one)
        return found

    def influence(self, assumption: str) -> float:
        """Return the largest factor by which an assumption alone moves ours; 1: it does not."""
        here = self.check.mean
        means = [float(s.mean) for s in self.alone().get(assumption, ()) if s.mean > 0]
        if not means or not here > 0:
            return 1.0
        return max(max(mean / here, here / mean) for mean in means)


@dataclass(frozen=True)
class Grid:
    """Two assumptions varied together.

    Attributes:
        pair: which, and for which claims.
        rows: values of the first.
        columns: values of the second.
        found: by claim, ours at (row, column).
    """

    pair: Pair
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    found: Mapping[str, Mapping[tuple[str, str], Interval]]


@dataclass(frozen=True)
class Result:
    """A study that was run.

    Attributes:
        study: what was asked.
        judged: the claims, in the paper's order.
        requests: simulated, in all settings.
        failures: settings under which something could not run, and why.
        points: of the hypercube.
        values: what was measured under the paper set, by quantity, one a replication.
    """

    study: Study
    judged: tuple[Judged, ...]
    requests: float
    failures: Mapping[str, str]
    points: int
    values: Mapping[str, Sequence[float]]


def read_study(paper: Paper, assumptions: Assumptions, recipes: Path = FOLDER) -> Study:
    """Read the recipes that the claims of a paper need.

    Raises:
        BadInput: one is not there or not valid, or a claim's metric cannot be measured.
    """
    figures = figures_of(needed(paper.claims))
    for pair in assumptions.pairs:
        for name in pair.claims:
            paper.claim(name)
    found = {name: read_recipe(name, recipes) for name in figures}
    return Study(paper, assumptions, read_paper_set(recipes), found)


def judge_claims(
    study: Study,
    folder: Path,
    jobs: int,
    points: int | None = None,
    alone: bool = True,
    told: Told | None = None,
) -> Result:
    """Measure what every claim is about, under every setting, and judge it.

    Args:
        study: what to judge.
        folder: of the files of the probes.
        jobs: processes.
        points: of the hypercube; None: as the assumptions say.
        alone: whether assumptions are also changed one at a time.
        told: told how far it is.
    """
    names = needed(study.paper.claims)
    samples, effort = study.assumptions.samples, study.assumptions.effort
    every = list(settings(study.assumptions, points))
    if not alone:
        every = [one for one in every if one.assumption in (PAPER_SET, JOINT)]
    parts = study.base, study.recipes
    probes = [new_probe(every[0], names, samples.paper_seeds, None, *parts)]
    probes += [new_probe(one, names, samples.seeds, effort, *parts) for one in every]
    ours, check, *others = probe_all(probes, folder, jobs, told)
    others = [replace(o, setting=s) for o, s in zip(others, every[1:], strict=True)]
    failures = {
        f"{probed.setting.assumption} = {probed.setting.value}: {quantity}": why
        for probed in (ours, check, *others)
        for quantity, why in probed.failures.items()
    }
    judged = [_judged(study.paper, claim, ours, check, others) for claim in study.paper.claims]
    requests = sum(probed.requests for probed in (ours, check, *others))
    joint = sum(one.assumption == JOINT for one in every)
    return Result(study, tuple(judged), requests, failures, joint, ours.values)


def run_grids(study: Study, folder: Path, jobs: int, told: Told | None = None) -> list[Grid]:
    """Vary the pairs of assumptions together."""
    samples, effort = study.assumptions.samples, study.assumptions.effort
    probes: list[Probe] = []
    spans = []
    for pair in study.assumptions.pairs:
        names = needed(_with_parts(study.paper, pair.claims))
        made = [
            new_probe(one, names, samples.seeds, effort, study.base, study.recipes)
            for one in grid(study.assumptions, pair)
        ]
        spans.append((pair, len(probes), len(probes) + len(made)))
        probes += made
    probed = probe_all(probes, folder, jobs, told)
    return [_grid(study, pair, probed[start:end]) for pair, start, end in spans]


def _with_parts(paper: Paper, names: Iterable[str]) -> list[Claim]:
    """Return claims with those that they are ratios of."""
    found = []
    for name in names:
        claim = paper.claim(name)
        found += [claim, *(_with_parts(paper, claim.of) if claim.kind == "gain_ratio" else ())]
    return found


def _grid(study: Study, pair: Pair, probed: Sequence[Probed]) -> Grid:
    down, across = (tuple(study.assumptions.assumptions[n].values) for n in pair.of)
    cells = [(row, column) for row in down for column in across]
    found = {
        name: {
            cell: _interval(study.paper, study.paper.claim(name), one)
            for cell, one in zip(cells, probed, strict=True)
        }
        for name in pair.claims
    }
    return Grid(pair, down, across, found)


def _judged(
    paper: Paper, claim: Claim, ours: Probed, check: Probed, others: Sequence[Probed]
) -> Judged:
    seen = []
    for probed in others:
        found = _interval(paper, claim, probed)
        setting: Setting = probed.setting
        seen.append(Seen(setting.assumption, setting.value, found.mean, found.low, found.high))
    here = _interval(paper, claim, ours)
    return Judged(
        claim,
        here,
        _interval(paper, claim, check),
        tuple(seen),
        judge(claim.claimed, here, seen),
    )


def _interval(paper: Paper, claim: Claim, probed: Probed) -> Interval:
    return student_t([claimed_value(claim, paper, found) for found in replications(probed)])


# -- what the joint settings say ----------------------------------------------------------------


def explained(judged: Judged, chosen: Sequence[Mapping[str, str]], assumption: str) -> float:
    """Return the share of the variance of log(ours) that an assumption explains alone.

    That of the means of its values, over the joint settings in which ours is defined (the
    correlation ratio, eta squared, less what as many groups of noise would explain).

    Args:
        judged: a claim.
        chosen: the values of each joint setting that are not the paper set's, by assumption.
        assumption: its name.
    """
    joint = [one for one in judged.settings if one.assumption == JOINT]
    groups: dict[str, list[float]] = {}
    for one, values in zip(joint, chosen, strict=True):
        if one.mean > 0:
            groups.setdefault(values.get(assumption, ""), []).append(math.log(one.mean))
    every = [value for group in groups.values() for value in group]
    count, kinds = len(every), len(groups)
    if count <= kinds or kinds < 2:
        return math.nan
    mean = math.fsum(every) / count
    total = math.fsum((value - mean) ** 2 for value in every)
    if not total:
        return 0.0
    between = math.fsum(len(g) * (math.fsum(g) / len(g) - mean) ** 2 for g in groups.values())
    within = (total - between) / (count - kinds)
    return max(0.0, (between - (kinds - 1) * within) / total)


def joint_choices(study: Study, points: int) -> list[Mapping[str, str]]:
    """Return what each joint setting chose."""
    drawn = settings(study.assumptions, points)
    return [one.chosen for one in drawn if one.assumption == JOINT]
