"""From measured samples to a profile: the form, the held-out error, the file.

Every fifth point of each kind is held out (`calibrate.score.split`). Whether decode steps share the
dense curve of prefill steps is decided inside the other points, by a second split of the same kind,
so that the held-out points judge a fit that never saw them. The coefficients written are then
fitted to all points; the error written is that of the fit to four fifths of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrate.forward import FEW_BANDS, LUMPED, MANY_BANDS, Dense, Form, fit_terms
from calibrate.padding import PaddingCost, padding_costs
from calibrate.pictures import Mark, draw_fit
from calibrate.samples import SKIPPED, Sample, read_samples
from calibrate.score import KINDS, evaluate, held_out_error, predicted_ms, split
from sim.costs.catalogue import Model, gpu_named, model_named
from sim.costs.model import StepCost
from sim.costs.profile import (
    FittedRange,
    PhaseError,
    Profile,
    Terms,
    profile_stem,
)
from sim.study.files import output_folder, write_text
from sim.types import BadInput

NEEDED_POINTS = {"prefill": 10, "decode": 8, "mixed": 5}
"""Fewest points of each kind: their coefficients, and a fifth held out."""

NEEDED_VALUES = {
    "prefill": ("step_tokens", 4),
    "decode": ("batch", 3),
    "mixed": ("kv_tokens", 2),
}
"""And over how many different values of what they spread."""

FORMS = ((False, FEW_BANDS), (False, MANY_BANDS), (True, FEW_BANDS), (True, MANY_BANDS))
"""Forms tried, simplest first: dense curve of decode steps separate, bands of batch sizes."""

CLOSE_FRAC = 0.10
CLOSE_ENOUGH = 1e-4
"""A simpler form is taken when its error is at most this share, and this much, above the best."""

ROUGH_MEDIAN = 0.10
ROUGH_P95 = 0.25
"""Held-out error above which a profile is marked as rough."""

ABOUT_KEYS = ("model", "gpu", "dtype", "device", "torch", "num_gpu_blocks", "block_size")
"""What the JSON beside the samples must say."""


@dataclass(frozen=True)
class FitReport:
    """A fitted profile and how it was judged.

    Attributes:
        profile: what is written.
        held_out: error by kind of step and of `all`, of the fit to the other points.
        marks: measured and predicted times of every point, for the picture.
        remarks: lines of the measurement that were skipped, a path that could not be fitted.
        left_out: points without a time (out of memory, refused).
        file: where the profile was written, once it was.
        picture: likewise.
    """

    profile: Profile
    held_out: dict[str, PhaseError]
    marks: tuple[Mark, ...]
    remarks: tuple[str, ...] = ()
    left_out: int = 0
    file: Path | None = None
    picture: Path | None = None

    def lines(self) -> list[str]:
        """Return the report as text: the error per kind of step, then what a user should know."""
        fitted = sum(not mark.held_out for mark in self.marks)
        lines = [
            f"{self.profile.name}: {fitted} points fitted, {len(self.marks) - fitted} held out"
            + (f", {self.left_out} without a time" if self.left_out else ""),
            f"{'held out':<10}{'points':>7}{'median':>9}{'p95':>9}{'bias':>9}",
        ]
        for kind, error in self.held_out.items():
            median, p95 = f"{error.median_abs_frac:.1%}", f"{error.p95_abs_frac:.1%}"
            bias = f"{error.bias_frac:+.1%}"
            lines.append(f"{kind:<10}{error.points:>7}{median:>9}{p95:>9}{bias:>9}")
        skipped = sum(remark.endswith(SKIPPED) for remark in self.remarks)
        if skipped:
            lines.append(f"{skipped} lines skipped")
        lines += [*self.remarks, *(f"note: {note}" for note in self.profile.notes)]
        written = (self.file, self.picture)
        return lines + [f"written: {path}" for path in written if path is not None]


def fit_folder(path: Path, out: Path | None = None, dense: Dense = "knots") -> list[FitReport]:
    """Fit every path that was measured; write one profile and one picture for each.

    Args:
        path: folder of a measurement (`samples.csv`, `samples.json`) or its CSV.
        out: folder to write into (default: that of the CSV), or a `.yaml` file where the
            measurement holds one path only.
        dense: knots of the dense curve, see `calibrate.forward.Form`.

    Raises:
        BadInput: a file is missing or malformed, or no path has enough points.
    """
    csv = path / "samples.csv" if path.is_dir() else path
    samples, complaints = read_samples(csv)
    about = read_about(csv)
    paths = sorted({sample.padded for sample in samples})
    if not paths:
        raise BadInput(f"{csv}: holds no measured point ({len(complaints)} lines skipped)")
    one_file = out is not None and out.suffix in (".yaml", ".yml")
    if one_file and len(paths) > 1:
        raise BadInput(f"--out {out}: {csv} gives two profiles (padded and not); name a folder")
    reports, problems = [], []
    for padded in paths:
        try:
            reports.append(fit_samples(samples, about, padded, dense))
        except BadInput as problem:
            problems.append(str(problem))
    if not reports:
        raise BadInput("; ".join(problems))
    remarks = (*complaints, *problems)
    if out is not None and one_file:
        return [_write(replace(reports[0], remarks=remarks), out)]
    folder = csv.parent if out is None else out
    return [
        _write(replace(report, remarks=remarks), folder / f"{report.profile.name}.yaml")
        for report in reports
    ]


def padding_of(path: Path, reports: Sequence[FitReport]) -> list[PaddingCost]:
    """Return what padding cost in a measurement and by its two profiles; [] with only one."""
    costs = {
        profile.engine.endswith("padded"): StepCost(profile, model_named(profile.model))
        for profile in (report.profile for report in reports)
    }
    if len(costs) < 2:
        return []
    samples, _ = read_samples(path / "samples.csv" if path.is_dir() else path)
    return padding_costs(samples, costs)


def fit_samples(
    samples: Sequence[Sample],
    about: Mapping[str, Any],
    padded: bool = False,
    dense: Dense = "knots",
) -> FitReport:
    """Fit the samples of one path.

    Args:
        samples: measured points; those of the other path and those without a time are left out.
        about: the JSON beside them (`ABOUT_KEYS`; used where there: tp, cuda, driver, kernel).
        padded: which path.
        dense: knots of the dense curve, see `calibrate.forward.Form`.

    Raises:
        BadInput: too few points of a kind, or `about` lacks a key or names what is unknown.
    """
    frame = _Frame(about, padded)
    chosen = [s for s in samples if s.padded == padded]
    usable = [s for s in chosen if s.status == "ok"]
    _check_enough(usable, frame.path)
    fitted, held_out = split(usable)
    form, errors = _choose_form(fitted, frame, dense)
    trial = frame.cost(fit_terms(fitted, form))
    judged = evaluate(trial, held_out)
    terms = fit_terms(usable, form)
    final = frame.cost(terms)
    marks = [
        Mark(s.kind, s.wall_ms or 0.0, predicted_ms(cost, s), aside)
        for group, cost, aside in ((fitted, final, False), (held_out, trial, True))
        for s in group
    ]
    profile = frame.profile(terms).model_copy(
        update={
            "fitted_range": _fitted_range(usable),
            "held_out_error": held_out_error(judged),
            "derivation": _derivation(terms, errors, frame.kernel),
            "notes": _notes(frame.name, judged),
        }
    )
    return FitReport(profile, judged, tuple(marks), left_out=len(chosen) - len(usable))


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile as the YAML file that `profile: path` of a config reads.

    Optional entries that have their default are left out. The file's name is the profile's name.
    """
    import yaml

    data = profile.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    data["block_size"] = profile.block_size
    head = (
        f"# {profile.model} on {profile.gpu}, tp {profile.tp}: written by `bucketsim calibrate`.\n"
    )
    text = yaml.safe_dump(
        data, sort_keys=False, default_flow_style=None, width=98, allow_unicode=True
    )
    write_text(path, head + text)


class _Frame:
    """What a profile says apart from its terms; read from the JSON of the measurement."""

    def __init__(self, about: Mapping[str, Any], padded: bool) -> None:
        missing = [key for key in ABOUT_KEYS if about.get(key) is None]
        if missing:
            raise BadInput(f"the JSON beside the samples lacks {', '.join(missing)}")
        self.about = about
        self.model: Model = model_named(str(about["model"]))
        self.gpu = gpu_named(str(about["gpu"])).name
        self.tp = int(about.get("tp") or 1)
        self.path = "padded" if padded else "ragged"
        kernel = about.get("kernel", "")
        self.kernel = str(kernel.get(self.path, "") if isinstance(kernel, Mapping) else kernel)
        self.name = f"{profile_stem(self.model.name, self.gpu, self.tp)}_torch-{self.path}"

    def profile(self, terms: Terms) -> Profile:
        """Return the profile, its error and range still missing."""
        about = self.about
        versions = {key: str(about[key]) for key in ("torch", "cuda", "driver") if about.get(key)}
        return Profile(
            name=self.name,
            gpu=self.gpu,
            model=self.model.name,
            tp=self.tp,
            dtype=about["dtype"],
            engine=f"torch-{self.path}",
            versions=versions,
            basis="measured",
            num_gpu_blocks=about["num_gpu_blocks"],
            block_size=about["block_size"],
            source=f"bucketsim calibrate measure, on {about['device']}",
            derivation="",
            terms=terms,
        )

    def cost(self, terms: Terms) -> StepCost:
        """Return the price list of some terms."""
        return StepCost(self.profile(terms), self.model)


def _choose_form(
    samples: Sequence[Sample], frame: _Frame, dense: Dense
) -> tuple[Form, dict[Form, float]]:
    """Return the simplest form whose error is close to the best, and the errors that decided."""
    fitted, aside = split(samples)
    errors = {}
    for form in (Form(separate, bands, dense) for separate, bands in FORMS):
        found = evaluate(frame.cost(fit_terms(fitted, form)), aside)
        kinds = [found[kind].mean_abs_frac for kind in KINDS if kind in found]
        errors[form] = sum(kinds) / len(kinds)
    enough = min(errors.values()) * (1.0 + CLOSE_FRAC) + CLOSE_ENOUGH
    return next(form for form, error in errors.items() if error <= enough), errors


def _check_enough(samples: Sequence[Sample], path: str) -> None:
    """Raise `BadInput` that names every kind of step with too few points."""
    problems = []
    for kind, needed in NEEDED_POINTS.items():
        rows = [sample for sample in samples if sample.kind == kind]
        name, least = NEEDED_VALUES[kind]
        values = len({getattr(row, name) for row in rows})
        if len(rows) < needed:
            problems.append(f"{kind} has {len(rows)}, needs {needed}")
        elif values < least:
            problems.append(f"{kind} has {values} different {name}, needs {least}")
    if problems:
        raise BadInput(f"too few points of the {path} path to fit: {'; '.join(problems)}")


def _fitted_range(samples: Sequence[Sample]) -> FittedRange:
    batches = [sample.batch for sample in samples if sample.batch]
    tokens = [sample.step_tokens for sample in samples]
    cached = [sample.kv_tokens for sample in samples if sample.batch]
    return FittedRange(
        step_tokens=(min(tokens), max(tokens)),
        batch=(min(batches), max(batches)),
        kv_tokens=(min(cached), max(cached)),
    )


def _derivation(terms: Terms, errors: Mapping[Form, float], kernel: str) -> str:
    """Say how the coefficients came about, and what they lump."""
    shared, separate = (
        min(error for tried, error in errors.items() if tried.separate == own)
        for own in (False, True)
    )
    why = f"mean error in a split of the fitted points {shared:.1%} shared, {separate:.1%} separate"
    host = "Host from wall time minus device time"
    if not any(terms.host.model_dump().values()):
        host = "Host time cannot be told from device time and is inside the dense curve, too"
    if terms.launch_ms:
        host += "; launch_ms from the shortest steps with chunks"
    own = terms.dense_decode is not None
    dense = "decode steps have a dense curve of their own" if own else "one dense curve"
    attention = f", attention kernel {kernel}" if kernel else ""
    return (
        f"Whole forward passes{attention}, relative least squares phase by phase (calibrate/"
        "forward.py), points missed by far more than most counting less. "
        f"{host}; {dense} ({why}); gamma on mixed steps. {LUMPED}. Coefficients fitted to all "
        "points; held_out_error is that of the same fit to four fifths of them, on the other "
        "fifth (every fifth by a hash of the point, ends of the grid always fitted)."
    )


def _notes(name: str, errors: Mapping[str, PhaseError]) -> tuple[str, ...]:
    """Mark a profile whose held-out error is high."""
    rough = [
        f"{kind} {error.median_abs_frac:.0%} median, {error.p95_abs_frac:.0%} p95"
        for kind, error in errors.items()
        if kind != "all"
        and (error.median_abs_frac > ROUGH_MEDIAN or error.p95_abs_frac > ROUGH_P95)
    ]
    if not rough:
        return ()
    return (
        f"{name} is rough: held-out error of {'; '.join(rough)} (good profiles stay below "
        f"{ROUGH_MEDIAN:.0%} median, {ROUGH_P95:.0%} p95)",
    )


def _write(report: FitReport, file: Path) -> FitReport:
    """Write profile and picture; a profile is called as its file."""
    output_folder(file.parent)
    profile = report.profile.model_copy(update={"name": file.stem})
    write_profile(profile, file)
    picture = file.with_suffix(".png")
    draw_fit(report.marks, report.held_out, profile.name, picture)
    return replace(report, profile=profile, file=file, picture=picture)


def read_about(csv: Path) -> Mapping[str, Any]:
    """Return the JSON beside a measurement: device, versions, model, engine settings."""
    path = csv.with_suffix(".json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadInput(f"{path}: not the JSON that describes a measurement") from None
    if not isinstance(about, dict):
        raise BadInput(f"{path}: not the JSON that describes a measurement")
    return about
