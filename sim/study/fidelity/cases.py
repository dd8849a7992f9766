"""The runs that the fidelity page compares with: read, fitted, judged, taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sim.study.config import Experiment
from sim.study.fidelity.ablation import Ablated, ablate, feature_changes, term_changes
from sim.study.fidelity.engine_file import Settings, read_engine, typed_settings
from sim.study.fidelity.errors import Figure, figures
from sim.study.fidelity.fit import Fitted, fit_constants, parse_constants
from sim.study.fidelity.measured import Measured, read_measured
from sim.study.fidelity.offsets import Offset, step_offsets
from sim.study.fidelity.output import engine_text
from sim.study.fidelity.replay import Replayed, experiment_of, replay
from sim.study.fidelity.run_table import read_prefix_blocks
from sim.study.files import output_folder, write_text
from sim.study.validation import validate
from sim.study.yaml_file import read_yaml
from sim.types import BadInput


class Case(BaseModel):
    """One measured run of the page."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="of its engine file and picture")
    title: str = Field(description="engine, version, model, GPU")
    source: str = Field(description="who measured it")
    result: str = Field(description="file, under the folder of data")
    engine: str | None = Field(None, description="engine file, under the folder of data")
    prefix_blocks: str | None = Field(None, description="file, under the folder of data")
    settings: tuple[str, ...] = Field((), description="key=value")
    fit: str = Field(description="constants that are fitted, a,b,c")
    kv: str = Field(description="where the size of the KV cache comes from")


@dataclass(frozen=True)
class Half:
    """Constants of one half of the rows, judged on the other.

    Attributes:
        fitted: the constants.
        figures: of the rows not used (`errors.figures`, whole run only).
    """

    fitted: Fitted
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Judged:
    """Everything the page says of a case.

    Attributes:
        case: what was asked for.
        made: the replay with the fitted constants.
        plain: the replay without them.
        fitted: the constants.
        halves: fitted on either half of the rows.
        offsets: of the profile alone, per step.
        ablated: one thing taken away at a time.
        engine_file: what `validate --engine` takes for the same.
    """

    case: Case
    made: Replayed
    plain: Replayed
    fitted: Fitted
    halves: tuple[Half, ...]
    offsets: tuple[Offset, ...]
    ablated: tuple[Ablated, ...]
    engine_file: Path


def read_cases(path: Path) -> list[Case]:
    """Read the list of cases."""
    data = read_yaml(path)
    entries = data.get("cases") if isinstance(data, Mapping) else None
    if not isinstance(entries, list):
        raise BadInput(f"{path}: expected a list `cases`")
    return [
        validate(Case, entry, f"cases.{at}", lambda _: str(path))
        for at, entry in enumerate(entries)
    ]


def judge(case: Case, data: Path, folder: Path) -> Judged:
    """Fit, replay and take apart one case.

    Args:
        case: what to compare with.
        data: folder of the measured runs.
        folder: where the engine file with the fitted constants goes.
    """
    measured = read_measured(data / case.result)
    if case.prefix_blocks is not None:
        measured = read_prefix_blocks(data / case.prefix_blocks, measured)
    given = Settings() if case.engine is None else read_engine(data / case.engine, measured.name)
    given = typed_settings(case.settings, "cases.yaml").over(_named_only(given))

    def experiment(more: Sequence[str] = ()) -> Experiment:
        return experiment_of(measured, given, more)

    names = parse_constants(case.fit)
    count = len(measured.trace)
    fitted = fit_constants(measured, experiment, names, np.arange(count))
    engine_file = output_folder(folder) / f"{case.name}.yaml"
    write_text(engine_file, engine_text(given, fitted))

    def with_constants(more: Sequence[str] = ()) -> Experiment:
        return experiment([*fitted.overrides(), *more])

    made = replay(measured, with_constants())
    profile = made.setup.instances[0].costs.profile
    changes = [*feature_changes(made), *term_changes(profile)]
    return Judged(
        case=case,
        made=made,
        plain=replay(measured, experiment([f"engine.{name}=0" for name in names])),
        fitted=fitted,
        halves=tuple(_halves(measured, experiment, names)),
        offsets=tuple(step_offsets(made, fitted.values_ms)),
        ablated=tuple(ablate(measured, with_constants, changes)),
        engine_file=engine_file,
    )


def _halves(measured: Measured, experiment: Any, names: Sequence[str]) -> list[Half]:
    """Fit on one half of the rows and judge on the other, both ways."""
    rows = np.arange(len(measured.trace))
    middle = len(rows) // 2
    found = []
    for used, other in ((rows[:middle], rows[middle:]), (rows[middle:], rows[:middle])):
        fitted = fit_constants(measured, experiment, names, used)
        made = replay(measured, experiment(fitted.overrides()))
        found.append(Half(fitted, tuple(figures(_only(made, other)))))
    return found


def _only(made: Replayed, rows: Any) -> Replayed:
    """Return a replay of which all rows but some count as unknown."""
    kept = np.zeros(len(made.measured.trace), dtype=bool)
    kept[rows] = True
    latency = {key: np.where(kept, ms, np.nan) for key, ms in made.latency_ms.items()}
    return replace(made, latency_ms=latency)


def _named_only(given: Settings) -> Settings:
    """Return settings whose origins name files without their folders."""
    origins = {key: Path(source).name for key, source in given.origins.items()}
    return replace(given, origins=origins)
