"""Runs of the core in a process of its own: interpreted or compiled, with either loop.

As a program it prints a digest for every run it is told to make:
`forms.py random COUNT LOOP POLICIES`, `forms.py load COUNT LOOP POLICIES`.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "build" / "compiled" / "site"
"""Where `make compiled` puts its wheel."""

FORMS = {
    "interpreted, stock SimPy": (ROOT, "simpy", "built-in"),
    "interpreted, fast loop": (ROOT, "fast", "built-in"),
    "compiled, interpreted policies, stock SimPy": (SITE, "simpy", "interpreted"),
    "compiled, interpreted policies, fast loop": (SITE, "fast", "interpreted"),
    "all compiled, stock SimPy": (SITE, "simpy", "built-in"),
    "all compiled, fast loop": (SITE, "fast", "built-in"),
}


def why_skipped() -> str | None:
    """Return why there is nothing to test; None: there is a build for this Python."""
    found = list((SITE / "sim" / "core").glob("instance.*.so"))
    if not found:
        return "no compiled core here: `make compiled` builds it"
    ending = sysconfig.get_config_var("EXT_SUFFIX")
    if any(path.name == f"instance{ending}" for path in found):
        return None
    return f"the compiled core is {found[0].name}, this Python loads {ending}"


def run(root: Path, *arguments: str) -> str:
    """Run this file against the packages in `root`; return what it prints."""
    folders = [root, ROOT / "tests" / "properties"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-P", __file__, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@cache
def interpreted(name: str):
    """Return the class of a policy from its source file, as a user's file would be loaded."""
    file = name.replace("-", "_")
    path = ROOT / "policies" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"user_{file}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    (found,) = [v for v in vars(module).values() if getattr(v, "name", None) == name]
    return found


def _random(count: int, loop: str, kind: str) -> None:
    from digest import digest
    from scenarios import policy_names, scenario

    from sim.core.simulation import simulate

    for name in policy_names():
        for seed in range(count):
            case = scenario(seed, name)
            case = case.but(options=case.options | {"loop": loop})
            policy = case.new_policy()
            if kind == "interpreted" and name != "chaos":
                policy = interpreted(name)(case.config)
            record = simulate(case.trace, policy, case.specs, case.settings())
            print(name, seed, digest(record), record.events)


def _load(count: int, loop: str, kind: str) -> None:
    """Run every policy at 90 % of saturation, as the benchmark does."""
    from digest import digest

    from sim.core.simulation import simulate
    from sim.study import bench
    from sim.study.build import build, settings
    from sim.study.run import requests_of, saturation_rate

    for label in (*bench.POLICIES, *bench.OTHERS):
        case = {"policy": label, "load": 0.9, "n": count, "rate": 1.0}
        case["rate"] = saturation_rate(bench.experiment(case))
        chosen = bench.experiment(case)
        setup = build(chosen, chosen.policies[0])
        policy = setup.policy
        if kind == "interpreted":
            policy = interpreted(policy.name)(chosen.policies[0].params)
        trace = requests_of(chosen, 0)
        options = settings(chosen, policy, trace, 0)
        options.loop = loop
        record = simulate(trace, policy, setup.specs, options)
        print(label, digest(record), record.events)


if __name__ == "__main__":
    what, how_many, chosen_loop, policies_of = sys.argv[1:]
    {"random": _random, "load": _load}[what](int(how_many), chosen_loop, policies_of)
