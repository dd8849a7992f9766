"""What the paper's claims are about, measured under a setting.

A claim names its figure, a metric and one or two series; the metric says here what is run and what
is read off. Every run has the config of the figure's recipe, at the point of the sweep that the
claim's condition names, with the setting's changes below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from sim.study.capacity.attainment import Target, at_rate, attained, rated
from sim.study.capacity.crossing import Span, crossing
from sim.study.config import Experiment, resolve, set_key
from sim.study.paper.assumptions import Definition, Effort, Setting
from sim.study.paper.figure_data import BREAKDOWN, MS_PER_S
from sim.study.paper.numbers import Claim, Paper
from sim.study.paper.recipes import PaperSet, Recipe, config_of
from sim.study.run import replicate, requests_of
from sim.types import BadInput

RATE = "workload.arrivals.rate"
STEP = 1.5
"""First step of a search, as a factor; from a rate known to be near `CLOSE`."""
CLOSE = 1.08
LEAST_PER_S, MOST_PER_S = 1 / 16, 1024.0
"""Ends of a search, requests per second."""
PERCENT = 100
UTILISATION: Mapping[Definition, Mapping[str, str]] = {
    "busy": {"": "gpu_busy_frac", "prefill": "phase_busy_prefill", "decode": "phase_busy_decode"},
    "kernel": {
        "": "gpu_kernel_frac",
        "prefill": "phase_busy_prefill",  # separate pools wait for no host
        "decode": "phase_busy_decode",
    },
    "flops": {"": "mfu", "prefill": "phase_mfu_prefill", "decode": "phase_mfu_decode"},
}
"""Keys of the summary: of all GPUs, and of the pools of a phase."""

Summary = Mapping[str, Any]


@dataclass
class Bench:
    """Runs one replication of a setting after another.

    Attributes:
        base: the paper set.
        recipes: of the figures, by name.
        setting: what is changed.
        effort: of the searches; None: as the recipes say.
        index: number of the replication.
        requests: simulated so far.
    """

    base: PaperSet
    recipes: Mapping[str, Recipe]
    setting: Setting
    effort: Effort | None = None
    index: int = 0
    requests: int = 0
    _found: dict[str, Summary] = field(default_factory=dict)
    _near_per_s: dict[tuple[str, str], float] = field(default_factory=dict)

    def next(self, index: int) -> None:
        """Go to a replication."""
        self.index = index
        self._found.clear()

    @property
    def utilisation(self) -> Mapping[str, str]:
        """What utilisation means here, as keys of the summary."""
        named = [c.measure for c in self.setting.changes if c.measure is not None]
        return UTILISATION[named[-1] if named else "kernel"]

    def config(self, figure: str, policy: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config of a figure's policy under the setting."""
        changes = self.setting.changes
        recipe = self.recipes[figure]
        twin = any(change.padding_free for change in changes)
        data = config_of(self.base, recipe, policy, twin, changes)
        over = [change.figures.get(figure, {}) for change in changes]
        for keys in (values, *over):
            for key, value in keys.items():
                set_key(data, key, deepcopy(value))
        return data

    def values(self, figure: str, at: int) -> dict[str, Any]:
        """Return what a point of the figure's sweep sets; -1 is the last."""
        sweep = self.recipes[figure].sweep
        return {key: given[at] for key, given in sweep.items() if key != "zip"}

    def summary(self, figure: str, policy: str, values: Mapping[str, Any]) -> Summary:
        """Return the summary of a run."""
        data = self.config(figure, policy, values)
        key = repr(data)
        if key not in self._found:
            experiment = resolve(data, f"figure {figure}")
            self.requests += len(requests_of(experiment, self.index))
            self._found[key] = replicate(experiment, experiment.policies[0], self.index).summary
        return self._found[key]

    def crossing_per_s(self, figure: str, policy: str) -> float:
        """Return the highest rate at which the figure's target is met; NaN: there is none."""
        recipe = self.recipes[figure]
        rates = [float(rate) for rate in recipe.sweep[RATE]]
        width = 0.01
        values: dict[str, Any] = {RATE: rates[0]}
        if "workload.num_requests" in recipe.sweep:
            values["workload.num_requests"] = recipe.sweep["workload.num_requests"][-1]
        if self.effort is not None:
            width = self.effort.width
            if figure in self.effort.requests:
                values["workload.num_requests"] = self.effort.requests[figure]
        experiment = rated(resolve(self.config(figure, policy, values), f"figure {figure}"))
        near = self._near_per_s.get((figure, policy))
        start = sorted(rates)[len(rates) // 2] if near is None else near
        step = STEP if near is None else CLOSE
        span = Span(start, step, LEAST_PER_S, MOST_PER_S, width, neighbours=False)
        assert recipe.target is not None, figure
        found = crossing(self._reaches(experiment, recipe.target / PERCENT), span).rate_per_s
        if not found:
            return math.nan
        self._near_per_s[figure, policy] = found
        return found

    def _reaches(self, experiment: Experiment, share: float) -> Callable[[float], bool]:
        trace = requests_of(experiment, self.index)
        least = Target(share).of(trace)

        def reaches(rate_per_s: float) -> bool:
            self.requests += len(trace)
            choice = experiment.policies[0]
            shares = attained(at_rate(experiment, rate_per_s), choice, self.index, least)
            return shares is not None and shares.reach(least)

        return reaches


# -- metrics ------------------------------------------------------------------------------------


def _tokens(bench: Bench, figure: str, series: str) -> float:
    return float(bench.summary(figure, series, bench.values(figure, -1))["total_token_throughput"])


def _completed(bench: Bench, figure: str, series: str) -> float:
    return float(bench.summary(figure, series, bench.values(figure, -1))["request_throughput"])


def _utilised(phase: str) -> Callable[[Bench, str, str], float]:
    def found(bench: Bench, figure: str, series: str) -> float:
        summary = bench.summary(figure, series, bench.values(figure, -1))
        return float(summary[bench.utilisation[phase]])

    return found


def _phase_of_long(bench: Bench, figure: str, series: str) -> float:
    """The series is the phase; the policy is the figure's only one, the requests its long ones."""
    recipe = bench.recipes[figure]
    mixtures = recipe.sweep["workload.mixture"]
    long = next(mix for mix in mixtures if recipe.names["+".join(mix)] == "Long")
    values = {RATE: recipe.sweep[RATE][-1], "workload.mixture": long}
    assert recipe.policies, figure
    return float(bench.summary(figure, recipe.policies[0], values)[bench.utilisation[series]])


def _shares_of_time(bench: Bench, figure: str, policy: str) -> list[dict[str, float]]:
    """Return the shares of the requests' time, one a rate of the figure."""
    found = []
    for at in range(len(bench.recipes[figure].sweep[RATE])):
        values = bench.values(figure, at)
        found.append(_parts(bench, figure, policy, values))
    return found


def _parts(bench: Bench, figure: str, policy: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return each part's share of a request's time; a batch's charge counts for each row."""
    summary = bench.summary(figure, policy, values)
    each_s = charged_s(bench, figure, policy, values) / max(int(summary["completed"]), 1)
    part = {key: float(summary[f"mean_{key}_ms"]) / MS_PER_S for key in BREAKDOWN[1:]}
    part["bucketing"] = each_s * float(summary["mean_batch_rows"])
    part["prefill"] -= part["bucketing"]
    whole = sum(part.values())
    return {key: value / whole for key, value in part.items()}


def charged_s(bench: Bench, figure: str, policy: str, values: Mapping[str, Any]) -> float:
    """Return the seconds charged for bucketing in a run."""
    each_us = bench.config(figure, policy, values)["policy"]["overhead_us_per_op"]
    counted = bench.summary(figure, policy, values)["bucketing_operations"]
    return float(counted) * float(each_us) * 1e-6


def _decode_share(bench: Bench, figure: str, series: str) -> float:
    shares = [share["decode"] for share in _shares_of_time(bench, figure, series)]
    return sum(shares) / len(shares)


def _bucketing_share(bench: Bench, figure: str, series: str) -> float:
    """The largest, over the rates of the figure."""
    return max(share["bucketing"] for share in _shares_of_time(bench, figure, series))


def _bucketing_growth(bench: Bench, figure: str, series: str) -> float:
    first, last = (charged_s(bench, figure, series, bench.values(figure, at)) for at in (0, -1))
    return last / first if first else math.nan


def _rate(bench: Bench, figure: str, series: str) -> float:
    return bench.crossing_per_s(figure, series)


METRICS: Mapping[str, Callable[[Bench, str, str], float]] = {
    "tokens per second of the whole run": _tokens,
    "highest rate at which 80 % of the requests meet the SLO": _rate,
    "completed requests per second": _completed,
    "GPU utilisation, average over the GPUs": _utilised(""),
    "GPU utilisation of the prefill GPUs": _utilised("prefill"),
    "GPU utilisation of the decode GPUs": _utilised("decode"),
    "GPU utilisation of the phase": _phase_of_long,
    "share of decode in the time of the requests": _decode_share,
    "share of bucketing in the time of the requests": _bucketing_share,
    "time of bucketing with 8 buckets over that with 1": _bucketing_growth,
}
"""By the text that the paper's numbers give."""


# -- claims -------------------------------------------------------------------------------------


def quantities(claim: Claim) -> list[str]:
    """Return the names of what has to be measured for a claim; none for a ratio of claims.

    Raises:
        BadInput: nobody knows how to measure its metric.
    """
    if claim.kind == "gain_ratio":
        return []
    if claim.metric not in METRICS:
        valid = "; ".join(METRICS)
        raise BadInput(f"claim {claim.id}: metric {claim.metric!r} has no measure; valid: {valid}")
    return [f"{claim.figure} | {claim.metric} | {series}" for series in claim.of]


def measured(bench: Bench, quantity: str) -> float:
    """Return a quantity in the bench's replication."""
    figure, metric, series = quantity.split(" | ")
    return METRICS[metric](bench, figure, series)


def claimed_value(claim: Claim, paper: Paper, found: Mapping[str, float]) -> float:
    """Return ours of what is claimed, from the quantities of one replication; NaN: undefined."""
    if claim.kind == "gain_ratio":
        parts = [claimed_value(paper.claim(name), paper, found) for name in claim.of]
    else:
        parts = [found[name] for name in quantities(claim)]
    if len(parts) == 1:
        return parts[0]
    return parts[0] / parts[1] if parts[1] else math.nan


def needed(claims: Iterable[Claim]) -> tuple[str, ...]:
    """Return the quantities of claims, each once, in order."""
    return tuple(dict.fromkeys(name for claim in claims for name in quantities(claim)))


def figures_of(names: Sequence[str]) -> list[str]:
    """Return the figures that quantities come from."""
    return list(dict.fromkeys(name.split(" | ")[0] for name in names))
