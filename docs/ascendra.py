"""Does Ascendra serve more than its baselines? `python docs/ascendra.py [WORKLOAD ...]`.

Runs `examples/ascendra.yaml` on each workload: the capacity of every policy (highest rate at which
90 % of the requests meet both bounds) in each replication, Ascendra's over the best baseline's with
a 95 % interval, the same with one parameter changed at a time, and the verdict of
`sim/study/claims/verdict.py` on its claim. Prints Markdown; some minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sim.study.claims.verdict import Claimed, Setting, judge

from sim.study.capacity.attainment import Target
from sim.study.capacity.search import PolicyCapacity, capacities
from sim.study.config import read_config, resolve
from sim.study.statistics.stats import Interval, student_t

CONFIG = Path(__file__).parent.parent / "examples" / "ascendra.yaml"
WORKLOADS: dict[str, dict[str, Any]] = {
    "sharegpt": {},
    "longbench": {"workload.max_model_len": 2048, "slo.ttft_ms": 2500},
}
"""What differs from the example. Prompts of LongBench are cut as in DistServe's evaluation."""
SENSITIVITY: dict[str, tuple[Any, ...]] = {
    "high_share": (0.67,),
    "margin_s": (0.0, 1.0),
    "packing": ("chunked",),
    "order": ("sjf",),
    "enforce": (True,),
}
"""One value at a time in place of the default. Two thirds of three instances are two."""
SEATS = 1024
"""Seats an instance in the setting where they bind nobody; 128 in the artifact."""
CLAIM = Claimed(value=1.7, bound=1.0, side="above")
"""Abstract: "by up to 1.7x compared to vLLM and Sarathi-Serve"."""
WIDTH = 0.02
OURS = "ascendra"
Values = NDArray[np.float64]


def main() -> None:
    """Print the tables and the verdict of each workload."""
    for name in sys.argv[1:] or WORKLOADS:
        report(name, found(name))


def found(name: str) -> dict[str, PolicyCapacity]:
    """Return the capacities on a workload, by label."""
    data = read_config(CONFIG)
    entries = [{"name": e} if isinstance(e, str) else e for e in data["policy"]]
    changed = [
        {"name": OURS, "label": f"{key}={value}", key: value}
        for key, values in SENSITIVITY.items()
        for value in values
    ]
    roomy = [
        {**e, "label": f"{e.get('label', e['name'])}, seats={SEATS}", "max_num_seqs": SEATS}
        for e in entries
    ]
    data["policy"] = entries + changed + roomy
    overrides = [f"workload.source={name}"]
    overrides += [f"{key}={value}" for key, value in WORKLOADS[name].items()]
    experiment = resolve(data, str(CONFIG), overrides)
    return capacities(experiment, Target(0.9), WIDTH, jobs=2, curve=()).policies


def report(name: str, policies: dict[str, PolicyCapacity]) -> None:
    """Print what was found on a workload."""
    rates = {k: np.array([c.rate_per_s for c in p.crossings]) for k, p in policies.items()}
    plain = {k: v for k, v in rates.items() if k != OURS and "=" not in k}
    roomy = {k: v for k, v in rates.items() if "seats=" in k and not k.startswith(OURS)}
    best, best_roomy = (np.max(list(of.values()), axis=0) for of in (plain, roomy))
    print(f"\n{name}: capacity at 90 % attainment, {len(best)} replications, 95 % intervals\n")
    print("| policy | requests/s | Ascendra over it |\n|---|---|---|")
    print(f"| {OURS} | {shown(rates[OURS])} | |")
    for label, of in plain.items():
        print(f"| {label} | {shown(of)} | {shown(rates[OURS] / of)} |")
    ours = ratio(rates[OURS], best)
    print(f"| best of these, by replication | {shown(best)} | {shown(rates[OURS] / best)} |")
    for label, of in roomy.items():
        print(f"| {label} | {shown(of)} | {shown(rates[OURS] / of)} |")
    print("\n| changed | requests/s | over the best baseline | policy operations a request |")
    print("|---|---|---|---|")
    settings = []
    for label, of in rates.items():
        if label in plain or label in roomy:
            continue
        against = best_roomy if "seats=" in label else best
        over = ratio(of, against)
        key, _, value = label.partition("=")
        if value:
            settings.append(Setting(key, value, over.mean, over.low, over.high))
        print(f"| {label} | {shown(of)} | {shown(of / against)} | {operations(policies[label])} |")
    verdict = judge(CLAIM, ours, settings)
    print(f"\nVerdict: **{verdict.name}**: {verdict.reason}.", flush=True)


def ratio(of: Values, to: Values) -> Interval:
    """Return the paired ratio."""
    return student_t((of / to).tolist())


def operations(policy: PolicyCapacity) -> str:
    """Return moves and arrivals at high priority per request, at the capacity."""
    point = policy.at_capacity
    if point is None:
        return ""
    return f"{point.figures['bucketing_operations'] / point.figures['completed']:.0%}"


def shown(values: Values) -> str:
    """Return the mean with its interval."""
    found = student_t(values.tolist())
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"


if __name__ == "__main__":
    main()
