"""Where the time of a run goes, by part of the simulator: docs/img/performance.csv.

Interpreted: py-spy looks from outside which line of which file runs, 1,000 times a second; unlike
cProfile it costs a call no more than a loop. `pip install py-spy`. Compiled: valgrind counts the
instructions of each C function; processor caches and other programs leave no mark on them.
"""

from __future__ import annotations

import ast
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

from sim.core.simulation import simulate
from sim.study import forms
from sim.study.bench import experiment
from sim.study.build import build, settings
from sim.study.run import requests_of, saturation_rate

DATA = Path(__file__).parent / "img" / "performance.csv"
HEAD = ("form", "policy", "part", "share", "count", "unit", "requests")
POLICIES = ("continuous v1", "distserve")
REQUESTS, TURNS, COUNTED = 10_000, 50, 5_000
"""Requests of a run, runs that py-spy watches, requests of the run that valgrind counts."""
SAMPLES_PER_S = 1000
RUN = "CPyDef_sim___core___simulation___Simulation___run"

Row = tuple[str, ...]

RECORDS, HEAP, LOOP = "records", "heap of last tokens", "event loop and list"
ARRIVALS, OWN = "arrivals, routing, leaving", "Python: "
PARTS = {
    "sim/core/instance": "step boundaries",
    "sim/core/seats": "seats and KV blocks",
    "sim/core/blocks": "seats and KV blocks",
    "sim/core/inbox": "seats and KV blocks",
    "sim/core/loop": LOOP,
    "sim/core/timers": LOOP,
    "simpy/": LOOP,
    "sim/core/records": RECORDS,
    "sim/core/links": "KV transfers",
    "sim/costs/": "cost model",
    "sim/types/costs": "cost model",
    "policies/": "policy, its view and queue",
    "sim/types/": "policy, its view and queue",
    "sim/types/request": ARRIVALS,
    "sim/core/": ARRIVALS,
}
"""Start of a module's path to its part; the longest counts."""

KINDS = {
    "memory": "alloc|free|_gc|gcmodule|NewReference|memset|dealloc|GC_|subtype_|_Dealloc",
    "packing of records": "_struct|PyLong_AsByteArray|bytearray|PyFloat_Pack|memmove|memcpy|s_pack",
    "heap": "heapq|siftup|siftdown",
    "dictionaries": "dict",
    "integers, comparing": "long|Long|CPyTagged|ompare|int_",
}
"""Kind of work of the C functions that are no module's own: words in file and name."""


def main() -> None:
    """Run one case, for a profiler to watch: POLICY RATE REQUESTS TURNS."""
    label, rate, n, turns = sys.argv[1:]
    chosen = experiment({"policy": label, "load": forms.LOAD, "n": int(n), "rate": float(rate)})
    trace = requests_of(chosen, 0)
    for _ in range(int(turns)):
        setup = build(chosen, chosen.policies[0])
        simulate(trace, setup.policy, setup.specs, settings(chosen, setup.policy, trace, 0))


def collect(site: Path) -> None:
    """Profile both forms and write `DATA`; without its profiler or build a form keeps its rows.

    Args:
        site: folder of the compiled packages.
    """
    spied = shutil.which("py-spy") is not None
    counts = site.exists() and shutil.which("valgrind") is not None
    rows: list[Row] = []
    if DATA.exists():
        with DATA.open() as file:
            known = [tuple(row) for row in csv.reader(file)][1:]
        rows = [row for row in known if not (spied if row[0] == "interpreted" else counts)]
    for label in POLICIES:
        rate = saturation_rate(experiment({"policy": label, "load": 1.0, "n": 1, "rate": 1.0}))
        if spied:
            rows += _rows("interpreted", label, watched(label, rate), "samples", REQUESTS * TURNS)
        if counts:
            rows += _rows("compiled", label, counted(label, rate, site), "instructions", COUNTED)
    with DATA.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *sorted(rows, key=_place)])


def _place(row: Row) -> tuple[bool, str, float]:
    return row[0] == "compiled", row[1], -float(row[3])


def _rows(form: str, label: str, parts: Counter[str], unit: str, n: int) -> list[Row]:
    total = parts.total()
    return [
        (form, label, part, f"{count / total:.4f}", str(count), unit, str(n))
        for part, count in parts.items()
    ]


def _command(label: str, rate: float, n: int, turns: int) -> list[str]:
    return [sys.executable, "-P", __file__, label, repr(rate), str(n), str(turns)]


def watched(label: str, rate: float) -> Counter[str]:
    """Return how often each part of an interpreted run was seen at work."""
    parts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "stacks"
        spy = ["py-spy", "record", "-r", str(SAMPLES_PER_S), "-f", "raw", "-o", str(found), "--"]
        env = {**os.environ, "PYTHONPATH": str(forms.ROOT)}
        command = [*spy, *_command(label, rate, REQUESTS, TURNS)]
        subprocess.run(command, check=True, env=env, capture_output=True)
        for line in found.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            if ";simulate (" in stack:
                place = re.search(r"\(([^()]*):(\d+)\)$", stack)
                file, row = ("", "0") if place is None else place.groups()
                parts[part_of_line(file, int(row))] += int(count)
    return parts


def part_of_line(file: str, row: int) -> str:
    """Return the part that a line of a source file belongs to."""
    if file in ("sim/core/instance.py", "sim/core/seats.py"):
        call = _calls(file).get(row, "")
        if call.startswith("heap"):
            return LOOP if "events" in call else HEAP
        if "PACK_STEP" in call:
            return RECORDS
    return part_of(file)


def part_of(file: str) -> str:
    """Return the part that a module, given by its path, belongs to."""
    starts = [start for start in PARTS if file.startswith(start)]
    return PARTS[max(starts, key=len)] if starts else f"{OWN}other"


@cache
def _calls(file: str) -> dict[int, str]:
    """Return, for the lines of a file with calls of the heap and of `PACK_STEP`, the call."""
    found = {}
    for node in ast.walk(ast.parse((forms.ROOT / file).read_text())):
        if isinstance(node, ast.Call) and re.match("heap|PACK_STEP", ast.unparse(node.func)):
            rows = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found |= dict.fromkeys(rows, ast.unparse(node))
    return found


def counted(label: str, rate: float, site: Path) -> Counter[str]:
    """Return the instructions of each part of a compiled run."""
    parts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        env = {**os.environ, "PYTHONPATH": str(site)}
        command = [*tool, f"--toggle-collect={RUN}", *_command(label, rate, COUNTED, 1)]
        subprocess.run(command, check=True, env=env, capture_output=True)
        shown = ["callgrind_annotate", "--threshold=100", "--auto=no", str(out)]
        text = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    for count, where in re.findall(r"^ *([\d,]+) \( *[\d.]+%\)  (\S+:\S+)", text, re.M):
        parts[part_of_function(where)] += int(count.replace(",", ""))
    return parts


def part_of_function(where: str) -> str:
    """Return the part of a C function, given as FILE:NAME."""
    name = re.search(r":CPy(?:Def|Py)_((?:sim|policies)___.*)", where)
    if name is not None:
        return part_of(name[1].replace("___", "/"))
    kind = next((kind for kind, words in KINDS.items() if re.search(words, where)), "other")
    return f"{OWN}{kind}"


if __name__ == "__main__":
    main()
