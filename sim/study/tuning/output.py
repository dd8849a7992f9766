"""What `bucketsim tune` prints with `--json` and writes to its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sim import __version__
from sim.study.build import build
from sim.study.files import output_folder, write_json, write_text
from sim.study.provenance import config_text
from sim.study.statistics.stats import Interval, student_t
from sim.study.tuning.search import BATCH, Candidate, Trial, Tuning, gain
from sim.study.tuning.space import resolved
from sim.study.tuning.trials import WIDTH, Failed, Result

FILE = "tune.json"
FIGURES = ("capacity_per_s", "p99_ttft_ms")


def tune_content(found: Tuning) -> dict[str, Any]:
    """Return a search as plain data."""
    cluster = found.space.baseline.cluster
    return {
        "bucketsim": __version__,
        "optuna": version("optuna"),
        "model": cluster.model,
        "gpu": cluster.gpu,
        "num_gpus": cluster.count,
        **asdict(found.how.target),
        "seed": found.space.seed,
        "batch": BATCH,
        "width": WIDTH,
        "load": found.load,
        "rate_per_s": found.how.rate_per_s,
        "n_replications": found.space.baseline.run.replications,
        "keys": list(found.space.keys),
        "num_trials": len(found.trials),
        "num_failed": len(found.failed),
        "num_repeated": found.repeated,
        "candidates": [_candidate(c, found.candidates[0]) for c in found.candidates],
        "trials": [_trial(t) | _result(t.result) for t in found.trials],
        "notes": list(found.notes),
    }


def write_tuning(found: Tuning, folder: Path) -> None:
    """Write `tune.json` and, for each trial of the front, the config that runs it."""
    output_folder(folder)
    for old in folder.glob("trial-*.yaml"):
        old.unlink()
    for candidate in found.candidates:
        if candidate.chosen:
            experiment = resolved(candidate.trial.data, found.space.source)
            text = config_text(experiment, build(experiment, experiment.policies[0]))
            write_text(folder / config_name(candidate.trial), text)
    write_json(folder / FILE, tune_content(found))


def config_name(trial: Trial) -> str:
    """Return the name of a trial's config."""
    return f"trial-{trial.number}.yaml"


def failure_lines(found: Tuning) -> list[str]:
    """Return the messages of failed trials, each once with its count."""
    counts: dict[str, int] = {}
    for trial in found.failed:
        assert isinstance(trial.result, Failed)
        counts[trial.result.error] = counts.get(trial.result.error, 0) + 1
    return [f"{count} x {error}" for error, count in counts.items()]


def _trial(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "label": trial.label, "values": dict(trial.values)}


def _candidate(candidate: Candidate, baseline: Candidate) -> dict[str, Any]:
    gains = {key: _interval("percent", gain(candidate, baseline, key)) for key in FIGURES}
    return {
        **_trial(candidate.trial),
        "chosen": candidate.chosen,
        "holds": candidate.holds,
        "config": config_name(candidate.trial) if candidate.chosen else None,
        "searched": _result(candidate.trial.result),
        "fresh": _result(candidate.fresh),
        "against_baseline": None if candidate is baseline else gains,
    }


def _result(result: Result) -> dict[str, Any]:
    content: dict[str, Any] = {"error": None, "is_lower_bound": None, "unserved_share": None}
    if isinstance(result, Failed):
        content["error"] = result.error
    else:
        content["is_lower_bound"], content["unserved_share"] = result.open, result.unserved
    for key in FIGURES:
        values: Sequence[float] = getattr(result, key, ())
        content |= _interval(key, student_t(values))
    return content


def _interval(key: str, interval: Interval) -> dict[str, float]:
    return {key: interval.mean, f"{key}_ci_low": interval.low, f"{key}_ci_high": interval.high}
