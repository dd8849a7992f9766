"""Measuring one trial of `tune`, the same way for all of them, and keeping what was measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.study.capacity.attainment import Target, at_rate
from sim.study.capacity.crossing import Span
from sim.study.capacity.search import CLOSE, capacities, crossing_of, figures_at, wide_span
from sim.study.config import Experiment
from sim.study.files import json_text, output_folder, write_text
from sim.study.notices import Tally, added
from sim.study.sweeps.sweep import result_files
from sim.study.sweeps.task import file_hash, packages
from sim.study.tasks import calls
from sim.study.tuning.space import resolved
from sim.types import BadInput, SimulationError

WIDTH = 0.02
"""Ends of a trial's bisections, relative to the upper: cheap; differences below it do not show."""
LOAD = 0.8
"""Share of the baseline's capacity at which p99 TTFT is measured."""
CEILING = 64.0
"""Highest rate tried, as a multiple of what `capacity` would try for the baseline: a trial may be
far better than that."""
FOLDER = "trials"


@dataclass(frozen=True)
class Yardstick:
    """How every trial is measured.

    Attributes:
        target: what a rate has to reach.
        span: where capacities are searched: every trial climbs the same ladder of rates, so that
            equal parameters come to equal figures.
        rate_per_s: requests per second at which p99 TTFT is measured.
        reached: whether the baseline reaches the target at any rate.
    """

    target: Target
    span: Span
    rate_per_s: float
    reached: bool


@dataclass(frozen=True)
class Measured:
    """What a trial came to.

    Attributes:
        capacity_per_s: of each replication.
        p99_ttft_ms: of each replication, at the common rate.
        open: whether a replication reaches the target at every rate tried.
        unserved: share of the requests at the common rate that do not finish.
        tally: what the runs at the common rate have to tell (`sim.study.notices`).
    """

    capacity_per_s: tuple[float, ...]
    p99_ttft_ms: tuple[float, ...]
    open: bool
    unserved: float
    tally: Tally = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """Why a trial came to nothing, one line."""

    error: str


Result = Measured | Failed


def yardstick(baseline: Experiment, target: Target, load: float, jobs: int = 1) -> Yardstick:
    """Return how trials are measured: around the capacity of the baseline.

    Raises:
        BadInput: the baseline cannot be simulated, or `load` is no share.
    """
    if not 0 < load <= 1:
        raise BadInput(f"--load: {load:g} of the baseline's capacity; valid: above 0, up to 1")
    found = next(iter(capacities(baseline, target, WIDTH, jobs, curve=()).policies.values()))
    capacity = found.rate_per_s.mean
    span = wide_span(baseline, found.saturation_per_s, WIDTH)
    span = replace(span, most_per_s=span.most_per_s * CEILING)
    if capacity:
        span = replace(span, start_per_s=capacity, step=CLOSE)
    return Yardstick(target, span, load * (capacity or found.saturation_per_s), capacity > 0)


def measure(experiment: Experiment, how: Yardstick, indices: Sequence[int]) -> Measured:
    """Return capacity and p99 TTFT of the given replications of the only policy.

    Raises:
        SimulationError: no request gets a first token.
    """
    crossings = [crossing_of(experiment, i, how.target, how.span) for i in indices]
    there = at_rate(experiment, how.rate_per_s)
    runs = [figures_at(there, i) for i in indices]
    figures = [summary for summary, _ in runs]
    ttft = tuple(float(f["p99_ttft_ms"]) for f in figures)
    if not all(map(math.isfinite, ttft)):
        raise SimulationError(f"no request gets a first token at {how.rate_per_s:.4g} requests/s")
    failed, completed = (sum(f[key] for f in figures) for key in ("failed", "completed"))
    return Measured(
        tuple(c.rate_per_s for c in crossings),
        ttft,
        any(c.open for c in crossings),
        failed / (failed + completed),
        added([tally for _, tally in runs]),
    )


def attempt(data: Mapping[str, Any], source: str, how: Yardstick, indices: range) -> Result:
    """Return what the trial with this config came to; errors are part of the result."""
    try:
        return measure(resolved(data, source), how, indices)
    except (BadInput, SimulationError) as known:
        return Failed(" ".join(str(known).split()))
    except Exception as unknown:
        return Failed(" ".join(f"{type(unknown).__name__}: {unknown}".split()))


class Measurements:
    """Measurements by what they are of: one that was made is never made again.

    With a folder, a file for each: a search that is started again takes the same way through them,
    because the sampler is seeded, and goes on where they end.
    """

    def __init__(self, source: str, how: Yardstick, folder: Path | None, jobs: int) -> None:
        self.source = source
        self.how = how
        self.folder = None if folder is None else output_folder(folder / FOLDER)
        self.jobs = jobs
        self.made: dict[str, Result] = {}
        self.found = 0

    def of(self, configs: Sequence[Mapping[str, Any]], indices: range) -> list[Result]:
        """Return the results of trials on the given replications, in their order."""
        names = [self.name(config, indices) for config in configs]
        new = {
            name: (config, self.source, self.how, indices)
            for name, config in zip(names, configs, strict=True)
            if name not in self.made and not self._read(name)
        }
        results: Iterator[Result] = calls(attempt, list(new.values()), self.jobs)
        for name, result in zip(new, results, strict=True):
            self.made[name] = result
            if self.folder is not None and isinstance(result, Measured):
                write_text(self._path(name), json_text(asdict(result)) + "\n")
        return [self.made[name] for name in names]

    def name(self, config: Mapping[str, Any], indices: range) -> str:
        """Return the hash of everything that decides a result."""
        try:
            experiment = resolved(config, self.source)
            about: Any = experiment.resolved()
            files = {path: file_hash(path) for path in result_files(experiment)}
        except BadInput:
            about, files = config, {}
        about = [packages(), about, files, asdict(self.how), list(indices)]
        text = json.dumps(about, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.json"

    def _read(self, name: str) -> bool:
        """Take a result from the folder; a file that cannot be read is measured again."""
        if self.folder is None:
            return False
        try:
            content = json.loads(self._path(name).read_text(encoding="utf-8"))
            result = Measured(
                tuple(content["capacity_per_s"]),
                tuple(content["p99_ttft_ms"]),
                bool(content["open"]),
                float(content["unserved"]),
                dict(content.get("tally", {})),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.made[name] = result
        self.found += 1
        return True


def kept(folder: Path) -> int:
    """Return how many measurements a folder holds."""
    return sum(1 for _ in (folder / FOLDER).glob("*.json"))
