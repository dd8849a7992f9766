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

from sim.study.capacity.attainment import Target
from sim.study.capacity.search import PolicyCapacity, capacities
from sim.study.claims.verdict import Claimed, Setting, judge
from sim.study.config import read_config, resolve
from sim.study.statistics.stats import Interval, student_t

CONFIG = Path(__file__).parent.parent / "examples" / "ascendra.yaml"
WORKLOADS: dict[str, dict[str, Any]] = {
    "sharegpt": {},
    "longbench": {"workload.max_model_len": 2048, "slo.ttft_ms": 2500},
}
"""What differs from the example. Prompts of LongBench are cut as in DistServe's evaluation."""
SENSITIVITY: dict[str, tuple[Any, ...]] = {
    "high_share": (0.5, 0.67),
    "margin_s": (0.0, 0.35, 1.0),
    "packing": ("chunked",),
    "order": ("sjf", "basic"),
    "max_num_batched_tokens": (2048,),
    "estimate_error": (0.0, 0.3),
}
"""One value at a time in place of the default. Half of three instances is two of high priority."""
CLAIM = Claimed(value=1.7, bound=1.0, side="above")
"""Abstract: "by up to 1.7x compared to vLLM and Sarathi-Serve"."""
WIDTH = 0.01
OURS = "ascendra"


def main() -> None:
    """Print the tables and the verdict of each workload."""
    for name in sys.argv[1:] or WORKLOADS:
        report(name, found(name))


def found(name: str) -> dict[str, PolicyCapacity]:
    """Return the capacities on a workload, by label."""
    data = read_config(CONFIG)
    for key, values in SENSITIVITY.items():
        for value in values:
            data["policy"].append({"name": OURS, "label": f"{key}={value}", key: value})
    overrides = [f"workload.source={name}"]
    overrides += [f"{key}={value}" for key, value in WORKLOADS[name].items()]
    experiment = resolve(data, str(CONFIG), overrides)
    return capacities(experiment, Target(0.9), WIDTH, jobs=2, curve=()).policies


def report(name: str, policies: dict[str, PolicyCapacity]) -> None:
    """Print what was found on a workload."""
    rates = {k: np.array([c.rate_per_s for c in p.crossings]) for k, p in policies.items()}
    baselines = {k: v for k, v in rates.items() if k != OURS and "=" not in k}
    best = np.max(list(baselines.values()), axis=0)
    count = len(best)
    print(f"\n{name}: capacity at 90 % attainment, {count} replications, 95 % intervals\n")
    print("| policy | requests/s | Ascendra over it |\n|---|---|---|")
    print(f"| {OURS} | {shown(student_t(rates[OURS]))} | |")
    for label, of in baselines.items():
        ratio = student_t(rates[OURS] / of)
        print(f"| {label} | {shown(student_t(of))} | {shown(ratio)} |")
    ours = student_t(rates[OURS] / best)
    print(f"| best of these, by replication | {shown(student_t(best))} | {shown(ours)} |")
    print(
        "\n| one parameter changed | requests/s | over the best baseline | moved |"
        "\n|---|---|---|---|"
    )
    settings = []
    for label, of in {OURS: rates[OURS]} | {k: v for k, v in rates.items() if "=" in k}.items():
        ratio = student_t(of / best)
        key, _, value = label.partition("=")
        if value:
            settings.append(Setting(key, value, ratio.mean, ratio.low, ratio.high))
        share = moved_share(policies[label])
        print(f"| {label} | {shown(student_t(of))} | {shown(ratio)} | {share} |")
    verdict = judge(CLAIM, ours, settings)
    print(f"\nVerdict: **{verdict.name}**: {verdict.reason}.")


def moved_share(policy: PolicyCapacity) -> str:
    """Return moves and direct arrivals per request at the capacity."""
    point = policy.at_capacity
    if point is None:
        return ""
    count = point.figures.get("bucketing_operations", float("nan"))
    total = point.figures.get("completed", float("nan"))
    return f"{count / total:.0%}"


def shown(interval: Interval) -> str:
    """Return a mean with its interval."""
    return f"{interval.mean:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


if __name__ == "__main__":
    main()
