"""Measure all forms of the core: the table of performance.md, and a picture in results/out.

`make performance`, or `python docs/performance.py --rounds 3`.
"""

from __future__ import annotations

import argparse
import cProfile
import platform
import pstats
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt

from sim.core.simulation import simulate
from sim.study import forms
from sim.study.bench import experiment
from sim.study.build import build, settings
from sim.study.files import output_folder
from sim.study.provenance import git_revision
from sim.study.run import requests_of, saturation_rate

PAGE = Path(__file__).parent / "performance.md"
PICTURE = Path("results/out/performance.png")
BEGIN, END = "<!-- table: make performance -->", "<!-- end of table -->"
PROFILED = ("continuous v1", "distserve")
REQUESTS = 5_000

PARTS = {
    "sim/core/instance.py": "instance: spans, steps",
    "sim/core/seats.py": "seats, blocks",
    "sim/core/loop.py": "event loop",
    "simpy/": "event loop",
    "heapq": "event loop",
    "sim/core/records.py": "records",
    "Struct": "records",
    "sim/core/simulation.py": "arrivals, routing",
    "sim/core/arrivals.py": "arrivals, routing",
    "sim/core/routers.py": "arrivals, routing",
    "sim/types/request.py": "arrivals, routing",
    "sim/core/links.py": "KV transfers",
    "sim/costs/": "pricing",
    "sim/types/costs.py": "pricing",
    "sim/types/queues.py": "waiting queues",
    "policies/": "policy",
    "sim/types/plans.py": "policy",
    "sim/types/policy.py": "policy",
    "sim/types/view.py": "view",
}
"""Start of a file's path, or a word in a built-in's name, to the part of a run it belongs to."""


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=forms.ROUNDS)
    parser.add_argument("--site", type=Path, default=forms.SITE)
    options = parser.parse_args()
    rows = forms.measure_forms(options.site.resolve(), options.rounds, large=True)
    draw(rows, {label: profile(label) for label in PROFILED})
    made = (
        f"{datetime.now(UTC):%Y-%m-%d}, revision {git_revision() or 'unknown'}, Python "
        f"{platform.python_version()}, {platform.machine()}, fastest of {options.rounds} turns of "
        "each form (a million requests: one turn)"
    )
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{forms.table(rows)}\n\n{made}.\n\n{END}{after}")
    print(f"wrote {PAGE} and {PICTURE}")


def profile(label: str) -> Counter[str]:
    """Return the share of an interpreted run's own time that each part takes."""
    case = {"policy": label, "load": forms.LOAD, "n": REQUESTS, "rate": 1.0}
    chosen = experiment(case | {"rate": saturation_rate(experiment(case))})
    setup = build(chosen, chosen.policies[0])
    trace = requests_of(chosen, 0)
    watch = cProfile.Profile()
    watch.runcall(
        simulate, trace, setup.policy, setup.specs, settings(chosen, setup.policy, trace, 0)
    )
    parts: Counter[str] = Counter()
    for (file, _, name), (_, _, own_s, _, _) in pstats.Stats(watch).stats.items():  # type: ignore[attr-defined]
        where = f"{file}:{name}".replace(str(forms.ROOT) + "/", "")
        found = [part for mark, part in PARTS.items() if mark in where]
        parts[found[0] if found else "other built-ins"] += own_s
    total = sum(parts.values())
    return Counter({part: own_s / total for part, own_s in parts.items()})


def draw(rows: list[forms.Found], profiles: dict[str, Counter[str]]) -> None:
    """Draw microseconds a request by form, and where the time of the interpreted form goes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    small = [row for row in rows if row["n"] == forms.REQUESTS]
    names = list(dict.fromkeys(row["form"] for row in small))
    width = 0.8 / len(forms.CASES)
    for index, label in enumerate(forms.CASES):
        mine = {row["form"]: row["timeouts_per_request"] for row in small if row["policy"] == label}
        at = [position + index * width for position in range(len(names))]
        left.barh(at, [mine[name] for name in names], width, label=label)
    left.set_yticks([position + width for position in range(len(names))], names)
    left.invert_yaxis()
    left.set_xlabel("bare SimPy timeouts a request")
    left.legend(frameon=False)
    parts = [part for part, _ in sum(profiles.values(), Counter()).most_common()]
    for index, (label, shares) in enumerate(profiles.items()):
        at = [position + index * 0.4 for position in range(len(parts))]
        right.barh(at, [100 * shares[part] for part in parts], 0.4, label=label)
    right.set_yticks([position + 0.2 for position in range(len(parts))], parts)
    right.invert_yaxis()
    right.set_xlabel("share of the interpreted run, % (cProfile, own time)")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    output_folder(PICTURE.parent)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
