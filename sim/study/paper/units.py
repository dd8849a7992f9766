"""Units of work: one run, or one search for a rate, each kept in a file of its own.

A unit is a resolved config with one policy, the number of the replication and what is asked. Its
name is the hash of these and of the engine; its result is `units/NAME.json`, written aside and
renamed. Another start of the same study reads what is there and runs the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sim import __version__
from sim.study.capacity.attainment import ALL, Target, at_rate, attained, shortfall
from sim.study.capacity.crossing import Crossing, Span, crossing
from sim.study.config import Experiment, resolve
from sim.study.files import plain, write_json
from sim.study.provenance import engine_hash
from sim.study.run import replicate
from sim.study.statistics.stability import STABLE
from sim.study.tasks import calls
from sim.types import BadInput, SimulationError

FOLDER = "units"
HASH_CHARS = 32
COST_OF_SEARCH, COST_OF_RUN = 1.0, 0.25
"""About how long units take, relative to one another."""

Kind = Literal["offline", "search"]
Found = Mapping[str, Any]
"""What a unit found; of one that failed, `error` only."""


@dataclass(frozen=True)
class Unit:
    """Some work of a study.

    Attributes:
        kind: `offline`: one run; `search`: for the highest rate that reaches a target.
        config: the resolved config with one policy, JSON.
        replication: number of the replication.
        asked: of a search: `least` (shares, by class, `ALL`: of all) and `span`.
    """

    kind: Kind
    config: str
    replication: int
    asked: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Hash of all that decides the result."""
        made_by = [__version__, engine_hash()]
        return _hash([made_by, self.kind, self.config, self.replication, self.asked])

    @property
    def cost(self) -> float:
        """About how long it takes, relative to others."""
        return COST_OF_SEARCH if self.kind == "search" else COST_OF_RUN


def offline_unit(config: str, replication: int) -> Unit:
    """Return the unit of one run to its end."""
    return Unit("offline", config, replication, {})


def search_unit(config: str, replication: int, least: Mapping[str, float], span: Span) -> Unit:
    """Return the unit of a search for the highest rate at which shares of requests are in time."""
    return Unit("search", config, replication, {"least": dict(least), "span": asdict(span)})


def crossing_in(found: Found) -> Crossing:
    """Return where the search of a unit ended."""
    high = math.inf if found["high_per_s"] is None else float(found["high_per_s"])
    tried = tuple((float(rate), bool(reached)) for rate, reached in found["tried"])
    return Crossing(float(found["low_per_s"]), high, tried)


# -- running ------------------------------------------------------------------------------------


class Progress:
    """Counts the units of a study, over all its calls of `run_units`.

    Attributes:
        planned: cost of all units of the study.
        tell: is told (this object) after every unit.
        found: units that were there.
        ran: units that were run.
        failed: those of them that failed.
        cost_found: cost of those that were there.
        cost_ran: cost of those that were run.
        runs: simulations.
        requests: that were sent to them, at most: some are ended early.
    """

    def __init__(self, planned: float, tell: Callable[[Progress], None] | None = None) -> None:
        self.planned = planned
        self.tell = tell
        self.found = self.ran = self.failed = self.runs = self.requests = 0
        self.cost_found = self.cost_ran = 0.0

    @property
    def share_left(self) -> float:
        """Work that is left, as a multiple of the work that was run."""
        left = max(self.planned - self.cost_found - self.cost_ran, 0.0)
        return left / self.cost_ran if self.cost_ran else math.inf

    def was_there(self, unit: Unit) -> None:
        """Count a unit that had a file."""
        self.found += 1
        self.cost_found += unit.cost

    def was_run(self, unit: Unit, found: Found) -> None:
        """Count a unit that was run, and tell."""
        self.ran += 1
        self.cost_ran += unit.cost
        self.failed += "error" in found
        self.runs += int(found.get("runs", 0))
        self.requests += int(found.get("requests", 0))
        if self.tell is not None:
            self.tell(self)


def run_units(units: Iterable[Unit], folder: Path, jobs: int, progress: Progress) -> list[Found]:
    """Return what each unit found: read where it was run before, else run.

    Args:
        units: the same one may come several times; it is run once.
        folder: of the study.
        jobs: local processes.
        progress: counts.
    """
    wanted = list(units)
    known: dict[str, Found] = {}
    left: dict[str, Unit] = {}
    for unit in wanted:
        if unit.name in known or unit.name in left:
            continue
        found = read_unit(folder, unit)
        if found is None:
            left[unit.name] = unit
        else:
            known[unit.name] = found
            progress.was_there(unit)
    tasks = [(unit, str(folder)) for unit in left.values()]
    for unit, found in zip(left.values(), calls(run_unit, tasks, jobs), strict=True):
        known[unit.name] = found
        progress.was_run(unit, found)
    return [known[unit.name] for unit in wanted]


def run_unit(unit: Unit, folder: str) -> Found:
    """Run a unit and write its file; the error of one that fails is returned and not kept."""
    try:
        experiment = resolve(json.loads(unit.config), f"unit {unit.name}")
        found = plain(WORK[unit.kind](experiment, unit))
    except (BadInput, SimulationError) as error:
        return {"error": str(error)}
    except Exception as error:  # a policy from outside can fail in any way
        return {"error": f"{type(error).__name__}: {error}"}
    about = {"bucketsim": __version__, **asdict(unit), "config": json.loads(unit.config)}
    write_json(_path(Path(folder), unit), about | {"found": found, "hash": _hash(found)})
    return dict(found)


def read_unit(folder: Path, unit: Unit) -> Found | None:
    """Return what a unit found when it was run; None: no intact file says so."""
    try:
        data = json.loads(_path(folder, unit).read_text(encoding="utf-8"))
        found, intact = data["found"], data["hash"] == _hash(data["found"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if intact and isinstance(found, dict) else None


def _offline(experiment: Experiment, unit: Unit) -> dict[str, Any]:
    done = replicate(experiment, experiment.policies[0], unit.replication)
    summary = done.summary
    by_source, by_priority = (summary["classes"].get(key, {}) for key in ("source", "priority"))
    return {
        "runs": 1,
        "requests": len(done.record.requests["arrival_s"]),
        "request_throughput": summary["request_throughput"],
        "total_token_throughput": summary["total_token_throughput"],
        "mean_ttft_ms": {name: of["mean_ttft_ms"] for name, of in by_source.items()},
        "mean_ttft_ms_by_priority": {k: of["mean_ttft_ms"] for k, of in by_priority.items()},
    }


def _search(experiment: Experiment, unit: Unit) -> dict[str, Any]:
    least: Mapping[str, float] = unit.asked["least"]
    span, choice = Span(**unit.asked["span"]), experiment.policies[0]

    def reached(rate_per_s: float) -> bool:
        shares = attained(at_rate(experiment, rate_per_s), choice, unit.replication, least)
        return shares is not None and shares.reach(least)

    at = crossing(reached, span)
    found = {
        "runs": len(at.tried),
        "requests": len(at.tried) * int(experiment.workload.num_requests or 0),
        "low_per_s": at.low_per_s,
        "high_per_s": at.high_per_s,
        "tried": at.tried,
    }
    if not at.low_per_s:
        found["why"] = _why(experiment, unit, least, span.least_per_s)
    elif not unit.replication and not at.open:
        there = replicate(at_rate(experiment, at.low_per_s), choice, unit.replication)
        found["grows"] = there.summary["saturation"] != STABLE
    return found


def _why(experiment: Experiment, unit: Unit, least: Mapping[str, float], rate_per_s: float) -> str:
    """Return what keeps requests from their bounds at the lowest rate tried."""
    slow = at_rate(experiment, rate_per_s)
    shares = attained(slow, experiment.policies[0], unit.replication)
    assert shares is not None, "only a run with a limit is ended"
    target = Target(max(least.values()), every_class=set(least) != {ALL})
    return shortfall(slow, shares, target)


WORK: Mapping[Kind, Callable[[Experiment, Unit], dict[str, Any]]] = {
    "offline": _offline,
    "search": _search,
}


def _path(folder: Path, unit: Unit) -> Path:
    return folder / FOLDER / f"{unit.name}.json"


def _hash(data: Any) -> str:
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS]


@dataclass(frozen=True)
class Checks:
    """What a reader must know about the searches of a study.

    Attributes:
        searches: how many there were.
        uneven: those in which a rate reached the target above one that missed it.
        growing: those of first replications whose queue still grew at the end of the run at the
            rate found: a longer run would give less.
        looked: how many were looked at for that.
        errors: of units that failed, each once.
    """

    searches: int
    uneven: int
    growing: int
    looked: int
    errors: tuple[str, ...]


def checks(found: Sequence[Found]) -> Checks:
    """Return what to say about what units found."""
    searches = [of for of in found if "tried" in of]
    errors = dict.fromkeys(str(of["error"]) for of in found if "error" in of)
    return Checks(
        len(searches),
        sum(not crossing_in(of).monotone for of in searches),
        sum(bool(of.get("grows")) for of in searches),
        sum("grows" in of for of in searches),
        tuple(errors),
    )
