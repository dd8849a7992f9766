"""What `bucketsim capacity` prints with `--json` and writes with `--out`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sim.study.build import build
from sim.study.capacity.attainment import ALL, at_rate, shortfall
from sim.study.capacity.layouts import Layout
from sim.study.capacity.search import Capacities, Point, PolicyCapacity
from sim.study.capacity.sizing import AMPLE, Demand, Sized
from sim.study.capacity.spares import Spares
from sim.study.config import Experiment
from sim.study.files import output_folder, write_json, write_text
from sim.study.provenance import config_text
from sim.study.run import requests_of
from sim.study.statistics.stats import Interval

HOURS_PER_DAY = 24
S_PER_HOUR = 3600

FIGURES = (
    *("slo_attainment", "slo_attainment_ttft", "slo_attainment_tpot"),
    *("request_goodput", "request_goodput_per_gpu", "output_throughput_per_gpu"),
    *("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "gpu_busy_frac"),
)
"""Of `summary.json`, at every point of a curve."""
ATTAINMENT = ("slo_attainment", "slo_attainment_ci_low", "slo_attainment_ci_high")


def capacity_content(found: Capacities) -> dict[str, Any]:
    """Return capacities as plain data."""
    cluster = found.experiment.cluster
    return {
        "model": cluster.model,
        "gpu": cluster.gpu,
        **asdict(found.target),
        "width": found.width,
        "policies": {label: _policy(p) for label, p in found.policies.items()},
        "baseline": next(iter(found.policies)),
        "differences": {
            label: {
                "percent": d.mean,
                "percent_ci_low": d.low,
                "percent_ci_high": d.high,
                "n": d.n,
            }
            for label, d in found.differences.items()
        },
        "notes": list(found.notes),
    }


def write_capacity(found: Capacities, folder: Path) -> None:
    """Write `capacity.json` and, by policy, the config that runs at its capacity."""
    output_folder(folder)
    for label, policy in found.policies.items():
        if policy.at_capacity is None:
            continue
        there = at_rate(found.experiment, policy.at_capacity.rate_per_s)
        there = replace(there, policies=(policy.choice,))
        text = config_text(there, build(there, policy.choice))
        write_text(folder / f"{label}.yaml", text)
    write_json(folder / "capacity.json", capacity_content(found))


def sizes_content(
    experiment: Experiment, demand: Demand, sizes: Sequence[Sized], price: float | None
) -> dict[str, Any]:
    """Return the fewest GPUs for a rate as plain data.

    Args:
        experiment: what was asked about.
        demand: the rate and the target.
        sizes: the answers.
        price: of a GPU-hour; None: no costs.
    """
    trace = requests_of(at_rate(experiment, demand.rate_per_s), 0)
    tokens_per_s = demand.rate_per_s * float(trace.output_len.mean())
    return {
        "model": experiment.cluster.model,
        "gpu": experiment.cluster.gpu,
        "rate_per_s": demand.rate_per_s,
        **asdict(demand.target),
        "price_per_gpu_hour": price,
        "policies": {
            s.choice.label: _sized(s, demand.rate_per_s, tokens_per_s, price) for s in sizes
        },
    }


def none_line(found: Capacities, label: str) -> str:
    """Return what to say of a policy that reaches its target at no rate; "" if it does."""
    best = found.policies[label].best
    if best is None:
        return ""
    rate, shares = best
    return (
        f"{label}: no rate reaches an attainment of {found.target.attainment:.4g}: at best "
        f"{shares.met[ALL]:.4g}, at {rate:.3g} requests/s; "
        + shortfall(found.experiment, shares, found.target)
    )


def short_line(experiment: Experiment, demand: Demand, sized: Sized) -> str:
    """Return what to say of a policy that no layout lets reach its target; "" if one does."""
    short, target = sized.short, demand.target
    if short is None:
        return ""
    return (
        f"{sized.choice.label}: no layout reaches an attainment of {target.attainment:.4g} at "
        f"{demand.rate_per_s:g} requests/s: {AMPLE} instances of a role attain "
        f"{short.met[ALL]:.4g}; {shortfall(experiment, short, target)}"
    )


def _policy(policy: PolicyCapacity) -> dict[str, Any]:
    gpus = policy.gpus
    content = {
        "num_gpus": gpus,
        "num_instances": policy.instances,
        "saturation_rate_per_s": policy.saturation_per_s,
        **_interval("capacity_per_s", policy.rate_per_s),
        **_interval("capacity_per_gpu_per_s", policy.rate_per_s, 1 / gpus),
        "n_replications": policy.rate_per_s.n,
        "is_lower_bound": any(c.open for c in policy.crossings),
        "monotone": all(c.monotone for c in policy.crossings),
        "at_capacity": None if policy.at_capacity is None else _point(policy.at_capacity, gpus),
        "replications": [
            {
                "capacity_per_s": c.rate_per_s,
                "reached_per_s": c.low_per_s,
                "missed_per_s": c.high_per_s,
                "monotone": c.monotone,
                "tried": [{"rate_per_s": rate, "reached": reached} for rate, reached in c.tried],
            }
            for c in policy.crossings
        ],
        "curve": [_point(point, gpus) for point in policy.curve],
        "best": None,
        "notes": list(policy.notes),
    }
    if policy.best is not None:
        rate, shares = policy.best
        content["best"] = {
            "rate_per_s": rate,
            "slo_attainment": shares.met[ALL],
            "by_bound": dict(shares.by_bound),
            "by_class": {name: share for name, share in shares.met.items() if name != ALL},
        }
    return content


def _point(point: Point, gpus: int) -> dict[str, Any]:
    return {
        "rate_per_s": point.rate_per_s,
        "rate_per_gpu_per_s": point.rate_per_s / gpus,
        **_figures(point.figures),
    }


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"saturation": figures["saturation"]}
    for key in FIGURES:
        for suffix in ("", "_ci_low", "_ci_high"):
            content[key + suffix] = figures[key + suffix]
    content["by_class"] = {
        name: {key: of[key] for key in ATTAINMENT}
        for name, of in figures["classes"].get("source", {}).items()
    }
    return content


def _interval(key: str, interval: Interval, factor: float = 1.0) -> dict[str, float]:
    return {
        key: interval.mean * factor,
        f"{key}_ci_low": interval.low * factor,
        f"{key}_ci_high": interval.high * factor,
    }


def _sized(
    sized: Sized, rate_per_s: float, tokens_per_s: float, price: float | None
) -> dict[str, Any]:
    best = sized.best
    content: dict[str, Any] = {
        "best": None if best is None else _layout(best, rate_per_s),
        "figures": None if sized.figures is None else _figures(sized.figures),
        "costs": None,
        "fewer": [_layout(layout, rate_per_s) for layout in sized.fewer],
        "others": [_layout(layout, rate_per_s) for layout in sized.others],
        "needs_alone": [asdict(need) for need in sized.needs],
        "notes": list(sized.notes),
    }
    if best is not None:
        content["costs"] = _costs(best.gpus, rate_per_s, tokens_per_s, price)
    if sized.spares is not None:
        content["failures"] = _spares(sized.spares, rate_per_s)
        enough = sized.spares.enough
        if enough is not None:
            content["failures"]["costs"] = _costs(enough.gpus, rate_per_s, tokens_per_s, price)
    if sized.short is not None:
        content["attainment_with_ample_instances"] = sized.short.met[ALL]
    return content


def _spares(spares: Spares, rate_per_s: float) -> dict[str, Any]:
    enough = spares.enough
    return {
        "availability": spares.availability,
        "without_spare": _layout(spares.without, rate_per_s),
        "n_plus_one": _layout(spares.one_each, rate_per_s),
        "enough": None if enough is None else _layout(enough, rate_per_s),
        "notes": list(spares.notes),
    }


def _layout(layout: Layout, rate_per_s: float) -> dict[str, Any]:
    return {
        "pools": [{"role": p.role, "instances": p.instances, "tp": p.tp} for p in layout.pools],
        "num_gpus": layout.gpus,
        "num_instances": layout.instances,
        "rate_per_gpu_per_s": rate_per_s / layout.gpus,
        "reached": layout.reached,
        **_interval("slo_attainment", layout.attainment),
        "n_replications": len(layout.shares),
    }


def _costs(
    gpus: int, rate_per_s: float, tokens_per_s: float, price: float | None
) -> dict[str, float]:
    """Return GPU-hours at the rate asked for, and what they cost."""
    costs = {
        "gpu_hours_per_day": float(gpus * HOURS_PER_DAY),
        "gpu_hours_per_million_requests": gpus / rate_per_s / S_PER_HOUR * 1e6,
    }
    if price is None:
        return costs
    per_s = gpus * price / S_PER_HOUR
    return costs | {
        "cost_per_hour": gpus * price,
        "cost_per_day": gpus * price * HOURS_PER_DAY,
        "cost_per_million_requests": per_s / rate_per_s * 1e6,
        "cost_per_million_output_tokens": per_s / tokens_per_s * 1e6 if tokens_per_s else math.nan,
    }
