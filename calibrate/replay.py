"""Replay a trace on a real model and in the simulator, under the same policy object.

Both sides run the engine of `sim.core`: the same queues, blocks and decisions. In the simulator a
step lasts what the fitted profile says; on the device it is a real forward pass and lasts as long
as it took. Static and continuous batching run on the wall clock, which stands still while there is
nothing to do; bucketserve's prefill and decode instance take turns on the one device, each with a
clock of its own that advances by device time only, and half of the KV blocks each. So the replay
judges what steps cost and what follows from it; the engine's rules are judged by the hand-worked
traces of the tests.

The engine's own work beside a step (the policy, the queues) is measured in a warm-up run on other
requests and added to the profile's host term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from calibrate.diff import (
    LONGER,
    LONGER_FRAC,
    REAL,
    REPEATED,
    SIMULATED,
    Difference,
    compare,
    markdown,
    same_requests,
)
from calibrate.executor import DeviceExecutor
from calibrate.fit import read_about, write_profile
from calibrate.pictures import draw_replay
from calibrate.rig import PATH_NAMES, DeviceRig, open_rig
from calibrate.runs import timed
from calibrate.score import evaluate
from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.costs.model import StepCost
from sim.costs.profile import HostTerm, load_profile
from sim.study.build import build, settings
from sim.study.config import Experiment, resolve
from sim.study.files import output_folder, write_text, written_aside
from sim.study.provenance import config_text
from sim.study.run import requests_of, saturation_rate
from sim.types import BadInput

LOADS = (0.8, 0.5, 1.0)
"""Shares of the saturation rate, the most telling first: a cut loses the last."""

REPEATED_RUN = ("continuous", LOADS[0])
"""Policy and load of the replay that is repeated, for the spread of the device itself."""

POLICIES = ("continuous", "static", "bucketserve")
SPLIT = ("bucketserve",)
"""Policies with a prefill and a decode instance."""

WARM_UP_SHARE = 0.5
"""Length of the warm-up run, in replays."""

WALL, DEVICE = "wall", "device"
TRIMMED = 95.0
"""Percentile at which the engine's own times are cut before the fit: a pause is not its work."""

US_PER_MS = 1e3

STEPS_HEAD = (
    "Steps of the real runs against the fitted profile: predicted / measured - 1.",
    "",
    "| replay | path | kind | steps | median | p95 | bias |",
    "|---|---|---|--:|--:|--:|--:|",
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """What is replayed.

    Attributes:
        seconds: simulated time of a replay; on the wall clock it takes less, for idle time is
            skipped.
        fewest: requests wanted at the first load; for them a replay may take `longest` seconds.
        longest: see `fewest`.
        max_model_len: prompt and output, tokens; longer prompts are cut.
        max_output_len: outputs are cut to this, tokens.
        loads: shares of the saturation rate.
        policies: names.
    """

    seconds: float
    max_model_len: int
    max_output_len: int
    fewest: int = 2
    longest: float = 25.0
    loads: Sequence[float] = LOADS
    policies: Sequence[str] = POLICIES


@dataclass(frozen=True)
class _Case:
    """One policy at one load."""

    policy: str
    load: float
    experiment: Experiment

    @property
    def name(self) -> str:
        return f"{self.policy} at {self.load:.0%}"

    def longer(self, step_ms: float) -> _Case:
        """Return the case with longer steps."""
        engine = self.experiment.engine.model_copy(update={"host_step_ms": step_ms})
        return replace(self, experiment=replace(self.experiment, engine=engine))


CPU = Scenario(seconds=3.0, max_model_len=512, max_output_len=64)
CUDA = Scenario(seconds=12.0, max_model_len=2048, max_output_len=256, fewest=300)


def replay_folder(
    measured: Path, device: str, out: Path | None, scenario: Scenario, say: Say
) -> list[Difference]:
    """Replay on the device that a folder was measured on, with the profiles fitted there.

    Args:
        measured: folder of `measure` and `fit`.
        device: cpu, cuda or cuda:N.
        out: folder of the results; None: `replay` in `measured`.
        scenario: what is replayed.
        say: told what is under way.

    Raises:
        BadInput: a file is missing, or the device cannot be opened.
    """
    about = read_about(measured / "samples.csv")
    profiles = {}
    for padded, name in PATH_NAMES.items():
        found = sorted(measured.glob(f"*_torch-{name}.yaml"))
        if not found:
            raise BadInput(f"{measured}: no profile *_torch-{name}.yaml; run calibrate fit first")
        profiles[padded] = found[0]
    weights = None if about["weights"] == "random" else Path(about["weights"])
    rig = open_rig(about["model"], device, about["dtype"], (False, True), weights, about["gpu"])
    return Replay(rig, profiles, scenario, out or measured / "replay", say).run()


class Replay:
    """Replays on one device, into one folder; everything is written after every stage.

    The folder holds `requests.parquet` (the columns of a record and `policy load side`, both
    sides, arrivals and lengths included), `engine.yaml` (every setting of every replay), the
    profiles the simulated side used, `diff.md` and `cdf.png`.

    Args:
        rig: device, model and KV cache.
        profiles: files of the padding-free path (False) and of the padded one (True).
        scenario: what is replayed.
        folder: where the results go.
        say: told what is under way.
    """

    def __init__(
        self,
        rig: DeviceRig,
        profiles: dict[bool, Path],
        scenario: Scenario,
        folder: Path,
        say: Say,
    ) -> None:
        self.rig, self.scenario, self.folder, self.say = rig, scenario, folder, say
        self._fitted = {padded: load_profile(path) for padded, path in profiles.items()}
        self._rates: dict[str, float] = {}
        self._rows: list[pd.DataFrame] = []
        self._steps: list[str] = []
        self._engines: list[str] = []
        self._about: list[str] = []
        output_folder(folder)
        self._write_profiles(HostTerm())

    def run(self) -> list[Difference]:
        """Run all stages; return the comparison."""
        self.rig.runner.warm_up(self.rig.limits.sequences)
        self._warm_up()
        for load in self.scenario.loads:
            for policy in self.scenario.policies:
                self._stage(self._case(policy, load))
        return compare(pd.concat(self._rows))

    # -- stages -----------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """Measure the engine's own time per step and row, on requests that are not replayed."""
        case = self._case("continuous", self.scenario.loads[0], WARM_UP_SHARE)
        executor = self._executor(case)
        self._real(case, executor, replication=1)
        ms = np.array(executor.engine_ms)
        rows = np.array([len(point.chunks) + point.batch for point, _ in executor.steps])
        typical = np.minimum(ms, np.percentile(ms, TRIMMED))
        (step_ms, row_ms), _ = nnls(np.stack([np.ones_like(rows), rows], axis=1), typical)
        self._about.append(
            f"The engine's own time beside a step, measured on {len(ms)} other steps: "
            f"{step_ms * US_PER_MS:.0f} us and {row_ms * US_PER_MS:.2f} us a row; on the wall "
            "clock it is added to the profile's host term."
        )
        self._write_profiles(HostTerm(step_ms=step_ms, seq_ms=row_ms))

    def _stage(self, case: _Case) -> None:
        """Run one case on both sides and write what is known so far."""
        self.say(f"{case.name}: {case.experiment.workload.num_requests} requests")
        executor = self._executor(case)
        sides = {SIMULATED: self._run(case, None), REAL: self._real(case, executor)}
        step_ms = np.mean([timing.device_ms for _, timing in executor.steps])
        sides[LONGER] = self._run(case.longer(LONGER_FRAC * float(step_ms)), None)
        if (case.policy, case.load) == REPEATED_RUN:
            sides[REPEATED] = self._real(case, self._executor(case))
        tables = {side: _table(case, side, record) for side, record in sides.items()}
        if not same_requests(tables[REAL], tables[SIMULATED]):
            raise RuntimeError(f"{case.name}: the two sides did not serve the same requests")
        self._rows += tables.values()
        self._steps += self._judged(case, executor)
        setup = build(case.experiment, case.experiment.policies[0])
        self._engines.append(f"--- # {case.name}\n{config_text(case.experiment, setup)}")
        self._write()

    def _write(self) -> None:
        table = pd.concat(self._rows, ignore_index=True)
        compared = compare(table)
        setting = self.rig.setting
        with written_aside(self.folder / "requests.parquet") as path:
            table.to_parquet(path, index=False)
        about = [*self._about, "", *STEPS_HEAD, *self._steps]
        write_text(self.folder / "diff.md", markdown(compared, about))
        write_text(self.folder / "engine.yaml", "".join(self._engines))
        title = f"{setting.model.name} on {setting.gpu.name}"
        draw_replay(table, title, self.folder / "cdf.png")

    def _write_profiles(self, engine: HostTerm) -> None:
        """Write the profiles the simulated side uses, with the engine's own time."""
        for padded, profile in self._fitted.items():
            host = profile.terms.host
            wall = host.model_copy(
                update={
                    "step_ms": host.step_ms + engine.step_ms,
                    "seq_ms": host.seq_ms + engine.seq_ms,
                }
            )
            for clock, term in ((WALL, wall), (DEVICE, HostTerm())):
                terms = profile.terms.model_copy(update={"host": term})
                changed = profile.model_copy(update={"terms": terms})
                write_profile(changed, self._profile_path(padded, clock))

    def _profile_path(self, padded: bool, clock: str) -> Path:
        return self.folder / f"profile_{PATH_NAMES[padded]}_{clock}.yaml"

    # -- one case ---------------------------------------------------------------------------

    def _case(self, policy: str, load: float, length: float = 1.0) -> _Case:
        """Return a policy at a share of its saturation rate in the simulator.

        `length`: in replays.
        """
        rate = self._rates.get(policy)
        if rate is None:
            rate = saturation_rate(self._experiment(policy, 1.0, 1, fuse_steps=True))
            self._rates[policy] = rate
        scenario = self.scenario
        count = length * scenario.seconds * load * rate
        if load == scenario.loads[0]:
            count = max(count, length * min(scenario.fewest, scenario.longest * load * rate))
        return _Case(policy, load, self._experiment(policy, load * rate, max(round(count), 2)))

    def _experiment(
        self, policy: str, rate: float, count: int, fuse_steps: bool = False
    ) -> Experiment:
        """Return the settings of a run; with fused steps the same, faster, in the simulator."""
        scenario, setting = self.scenario, self.rig.setting
        # Split pools have a profile each: prefills are padded, decodes are not.
        pools = [
            {"role": role, "instances": 1, "profile": str(self._profile_path(padded, DEVICE))}
            for role, padded in (("prefill", True), ("decode", False))
        ]
        split = policy in SPLIT
        instances = len(pools) if split else 1
        return resolve(
            {
                "cluster": {
                    "gpu": setting.gpu.name,
                    "count": instances,
                    "model": setting.model.name,
                    "profile": str(self._profile_path(policy != "continuous", WALL)),
                    "pools": pools if split else None,
                },
                "policy": {"name": policy, **self._limits(policy)},
                "workload": {
                    "source": "sharegpt",
                    "num_requests": count,
                    "max_model_len": scenario.max_model_len,
                    "max_output_len": scenario.max_output_len,
                    "arrivals": {"process": "poisson", "rate": rate},
                },
                "engine": {
                    "fuse_steps": fuse_steps,
                    "num_gpu_blocks": setting.num_blocks // instances,
                    "block_size": setting.block_size,
                    "swap_space_gib": 0,
                },
            },
            "replay",
        )

    def _limits(self, policy: str) -> dict[str, Any]:
        """Return what keeps a policy inside the steps that were measured."""
        tokens, seats = self.rig.limits.step_tokens, self.rig.limits.sequences
        longest = self.scenario.max_model_len
        if policy == "static":
            return {"max_batch_size": max(tokens // longest, 1)}
        if policy == "continuous":
            return {"max_num_batched_tokens": tokens, "max_num_seqs": seats}
        return {"max_batch_tokens": tokens, "l_max": longest, "max_num_seqs": seats}

    def _executor(self, case: _Case) -> DeviceExecutor:
        vocab = self.rig.setting.model.vocab
        return DeviceExecutor(self.rig.runner, vocab, case.policy not in SPLIT)

    def _judged(self, case: _Case, executor: DeviceExecutor) -> list[str]:
        """Return how the real run's own steps compare with the profile, a table row a kind."""
        samples = [timed(point, [timing]) for point, timing in executor.steps]
        lines = []
        for padded in sorted({sample.padded for sample in samples}):
            cost = StepCost(self._fitted[padded], self.rig.setting.model)
            errors = evaluate(cost, [s for s in samples if s.padded == padded])
            lines += [
                f"| {case.name} | {PATH_NAMES[padded]} | {kind} | {error.points} "
                f"| {error.median_abs_frac:.1%} | {error.p95_abs_frac:.1%} "
                f"| {error.bias_frac:+.1%} |"
                for kind, error in errors.items()
                if kind != "all"
            ]
        return lines

    def _real(self, case: _Case, executor: DeviceExecutor, replication: int = 0) -> RunRecord:
        try:
            return self._run(case, executor, replication)
        finally:
            executor.close()

    def _run(self, case: _Case, executor: DeviceExecutor | None, replication: int = 0) -> RunRecord:
        experiment = case.experiment
        trace = requests_of(experiment, replication)
        setup = build(experiment, experiment.policies[0])
        how = settings(experiment, setup.policy, trace, 0)
        how.executor = executor
        return simulate(trace, setup.policy, setup.specs, how)


def _table(case: _Case, side: str, record: RunRecord) -> pd.DataFrame:
    """Return a record's request columns, labelled."""
    table = pd.DataFrame(record.requests)
    table.insert(0, "policy", case.policy)
    table.insert(1, "load", case.load)
    table.insert(2, "side", side)
    return table
