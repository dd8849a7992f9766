"""The requests of a measured run through the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.costs.catalogue import gpus, models
from sim.study.build import Setup, build, settings
from sim.study.config import COMMAND_LINE, Experiment, Origins, overridden, resolve
from sim.study.fidelity.engine_file import Settings, from_arguments
from sim.study.fidelity.measured import Floats, Measured
from sim.study.notices import notices, tally
from sim.study.run import router_seed
from sim.study.statistics.clock import CLIENT, Clock
from sim.types import BadInput

POLICY = "continuous"
"""What serves if neither the settings nor a preset say."""

BASE = "bucketsim validate"
"""Origin of what a replay needs and nobody else says."""

GUESSED = "KV cache size guessed"


@dataclass(frozen=True)
class Replayed:
    """A measured run and its simulation.

    Attributes:
        measured: what was measured.
        experiment: every setting.
        setup: what it was built to.
        record: what the simulator did.
        latency_ms: `ttft`, `tpot`, `e2el` -> milliseconds, shape (n,); NaN where undefined.
        duration_s: simulated, from the first arrival to the last token.
        notes: what a reader of any output must be told.
    """

    measured: Measured
    experiment: Experiment
    setup: Setup
    record: RunRecord
    latency_ms: Mapping[str, Floats]
    duration_s: float
    notes: tuple[str, ...]

    @property
    def clock(self) -> str:
        """Since when TTFT and E2E count: `client` (arrival) or `engine` (the scheduler sees it)."""
        return self.experiment.engine.ttft_clock

    @property
    def steps(self) -> int:
        """Steps simulated."""
        return int(self.record.steps["n_steps"].sum())

    @property
    def extrapolated_steps(self) -> int:
        """Steps outside the range that the profile was fitted on."""
        rows = self.record.steps
        return int(rows["n_steps"][rows["extrapolated"]].sum())

    @property
    def kv_guess(self) -> str | None:
        """What to say about a KV cache whose size nobody gave; None: it was given."""
        costs = self.setup.instances[0].costs
        if not costs.kv_guessed:
            return None
        return (
            f"{GUESSED}: {costs.num_gpu_blocks:,} blocks of {costs.block_size} tokens by formula, "
            "often 10-30 % too high; give engine.num_gpu_blocks, --engine or --server-log"
        )


def experiment_of(measured: Measured, given: Settings, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment that replays a run.

    Args:
        measured: the run; what its file says about the engine counts least.
        given: of the engine file and the server's log.
        overrides: `key.sub=value`; they win.

    Raises:
        BadInput: GPU or model are not known, or a setting is wrong.
    """
    hints = from_arguments(measured.hints, str(measured.path))
    found = given.over(hints).over(_base(measured))
    data = found.nested()
    if overridden(deepcopy(data), overrides).get("engine", {}).get("preset") is None:
        data["policy"] = {"name": POLICY, **data.get("policy", {})}
    _check_known(measured, overridden(deepcopy(data), overrides))
    experiment = resolve(data, BASE, overrides)
    own = {k: v for k, v in found.origins.items() if not _overridden(k, overrides)}
    merged = {**experiment.origins.given, **_leaves(own, experiment.origins)}
    return replace(experiment, origins=Origins(BASE, merged))


def replay(measured: Measured, experiment: Experiment) -> Replayed:
    """Simulate the requests of a measured run."""
    choice = experiment.policies[0]
    setup = build(experiment, choice)
    trace = measured.trace
    how = settings(experiment, setup.policy, trace, router_seed(experiment, 0))
    record = simulate(trace, setup.policy, setup.specs, how)
    latency = simulated_latency_ms(record.requests, experiment.engine.clock)
    last = float(np.nanmax(record.requests["finish_s"], initial=0.0))
    first = float(np.nanmin(record.requests["arrival_s"], initial=np.inf))
    told = notices(setup.notes, [tally({}, record)], same_requests=False, saturation="stable")
    told = tuple(note for note in told if "a formula's guess" not in note)
    return Replayed(
        measured=measured,
        experiment=experiment,
        setup=setup,
        record=record,
        latency_ms=latency,
        duration_s=last - first,
        notes=(*measured.notes, *told, *_lost(record)),
    )


def simulated_latency_ms(columns: Mapping[str, Any], clock: Clock) -> dict[str, Floats]:
    """Return the three latencies of a record's requests, by request id; NaN: did not finish."""
    done = columns["status"] == "finished"
    ttft, e2e = (np.where(done, ms, np.nan) for ms in clock.latencies_ms(columns))
    gaps = columns["emitted_tokens"] - 1
    tpot = np.full(len(gaps), np.nan)
    np.divide(e2e - ttft, gaps, out=tpot, where=gaps > 0)
    return {"ttft": ttft, "tpot": tpot, "e2el": e2e}


def _base(measured: Measured) -> Settings:
    """Return what a replay needs besides the engine."""
    values: dict[str, Any] = {
        "cluster.count": 1,
        "workload.source": str(measured.path),
        "run.replications": 1,
        "run.steps": True,
        "engine.ttft_clock": measured.clock or CLIENT,
    }
    if measured.prefix_blocks is not None:
        values["workload.prefix_blocks"] = str(measured.prefix_blocks)
    if measured.arrivals == "closed":
        closed = {"process": "closed", "concurrency": measured.concurrency}
        values["workload.arrivals"] = closed
    return Settings(values, dict.fromkeys(values, BASE))


def _check_known(measured: Measured, data: Mapping[str, Any]) -> None:
    cluster = data.get("cluster", {})
    for key, valid in (("gpu", gpus()), ("model", models())):
        if not cluster.get(key):
            raise BadInput(
                f"{measured.path}: says nothing about the {key}: add cluster.{key}=NAME or "
                f"--engine FILE; valid: {', '.join(sorted(valid))}"
            )


def _overridden(key: str, overrides: Sequence[str]) -> bool:
    typed = [override.partition("=")[0] for override in overrides]
    return any(f"{key}.".startswith(f"{name}.") for name in typed)


def _leaves(own: Mapping[str, str], origins: Origins) -> dict[str, str]:
    """Return the origin of each leaf below the keys of `own`."""
    found = {}
    for leaf, source in origins.given.items():
        for key, mine in own.items():
            if source != COMMAND_LINE and f"{leaf}.".startswith(f"{key}."):
                found[leaf] = mine
    return found


def _lost(record: RunRecord) -> tuple[str, ...]:
    lost = int((record.requests["status"] != "finished").sum())
    if not lost:
        return ()
    return (f"{lost} requests were not served by the simulator and are left out of the errors",)
