"""`fit --operators`: profiles of any dense model, fitted to step times composed from tables.

    step times composed from tables (`calibrate.compose`) on steps of real replays
    -> the terms of `spec/costs.md`, each fitted to its operator (`calibrate.solve`)
    -> judged on the steps of other replays

Everything the fit cannot know (host time, gamma where no mixed step was measured) is an assumption
named in the profile's derivation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrate.compose import Operators
from calibrate.compose_layers import LayerOperators, measured_layouts
from calibrate.compose_matrix import STAND_IN, MatrixOperators
from calibrate.fit import write_profile
from calibrate.operator_fit import LARGEST_STEP_TOKENS, Errors, fit_terms, judge, judge_terms
from calibrate.steps import Steps, decode_grid, joined, replayed, short_prompts
from calibrate.tables import Table, read_tables
from sim.costs.catalogue import Model, gpu_named, model_named, models
from sim.costs.library import PROFILE_DIR
from sim.costs.memory import TP_CHOICES, check_layout, kv_blocks_by_formula
from sim.costs.profile import (
    FittedRange,
    HeldOutError,
    PhaseError,
    Profile,
    Terms,
    load_profile,
    profile_stem,
)
from sim.study.files import output_folder
from sim.types import BadInput

ORIGINS = {
    "aiconfigurator_a100": ("ai-dynamo/aiconfigurator (Apache-2.0)", "0.14.0"),
    "aiconfigurator_h": ("ai-dynamo/aiconfigurator (Apache-2.0)", "0.19.0"),
    "llmservingsim_": ("casys-kaist/LLMServingSim (MIT)", "0.19.0"),
}
"""How the names of public tables begin -> whose they are, and the version of vLLM they are of."""

ENGINE = "vllm-operators"
"""The tables hold kernels as vLLM launches them; no engine's host time is in them."""

DTYPE = "bf16"
BLOCK_SIZE = 16

SOURCES = ("sharegpt", "mixed")
"""Workloads whose replays give the steps."""

FIT_SEED, JUDGE_SEED = 1, 2
FIT_STEPS = 1500
"""Steps of each workload that a fit sees."""

JUDGED_STEPS = 1000
"""Other steps of each workload that it is judged on."""

SHORT_BATCHES = 60
"""Batches of short prompts among the steps of a fit, and among those judged apart."""

LEAST_KV_TOKENS = 4096
"""A layout with less room for KV than this, or than the model's longest sequence, is not fitted."""

MIXTURE = re.compile(r"moe|mixtral|dbrx|deepseek-v[23]|gpt-oss|grok|\d+x\d+b|-a\d+b", re.IGNORECASE)
"""Names of mixtures of experts."""


@dataclass(frozen=True)
class Report:
    """What came of one layout.

    Attributes:
        name: of the profile.
        path: the file written; None if it was passed over.
        reason: why it was passed over.
        composed: errors of whole steps by workload, `all` of them together, `short prompts` apart.
        operators: errors of single terms on the judged steps; no bar holds for them.
    """

    name: str
    path: Path | None
    reason: str
    composed: dict[str, Errors]
    operators: dict[str, Errors]


def fit_operators(
    tables_dir: Path, gpu: str, model: str | None, tp: int | None, out: Path
) -> list[Report]:
    """Fit profiles of a GPU to operator tables and write them.

    Args:
        tables_dir: folder of tables (`calibrate.tables` says which).
        gpu: catalogue name.
        model: catalogue name of a dense model; None: every one the tables serve.
        tp: tensor-parallel degree; None: 1, 2, 4 and 8, or those that were measured.
        out: folder for the YAML files.

    Returns:
        One report a layout; with a model or tp left open those that cannot be say why.

    Raises:
        BadInput: bad tables, an unknown name, a mixture of experts, or a layout asked for that
            cannot be.
    """
    gpu_named(gpu)
    if model is not None:
        _check_dense(model)
        model_named(model)
    tables = read_tables(tables_dir, gpu)
    stand_in = _stand_in(tables_dir, gpu)
    reports = []
    for name, degree in _layouts(tables, model, tp):
        stem = f"{profile_stem(name, gpu, degree)}_{ENGINE}"
        try:
            operators = _operators(tables, stand_in, name, gpu, degree)
        except BadInput as error:
            if model is not None and tp is not None:
                raise
            reports.append(Report(stem, None, str(error), {}, {}))
            continue
        reports.append(_fit_one(operators, name, gpu, degree, out / f"{stem}.yaml"))
    return reports


def report_lines(reports: Sequence[Report]) -> list[str]:
    """Return the reports as lines of text, errors in per cent."""
    lines = ["composed step times against the fit: median / p95 / bias, %"]
    for report in reports:
        if report.path is None:
            lines.append(f"{report.name}: passed over: {report.reason}")
            continue
        lines.append(f"{report.name}: " + "; ".join(_texts(report.composed)))
        lines.append("  operators (no bar): " + "; ".join(_texts(report.operators)))
    return lines


def _texts(errors: dict[str, Errors]) -> Iterable[str]:
    for name, e in errors.items():
        shown = f"{100 * e.median:.2f} / {100 * e.p95:.2f} / {100 * e.bias:+.2f}"
        yield f"{name} {shown} (n={e.points})"


# -- which layouts ------------------------------------------------------------------------------


def _check_dense(model: str) -> None:
    if model not in models() and MIXTURE.search(model):
        raise BadInput(
            f"--model {model}: a mixture of experts; operator tables and the step form know dense "
            f"layers only; dense models: {', '.join(sorted(models()))}"
        )


def _layouts(tables: dict[str, Table], model: str | None, tp: int | None) -> list[tuple[str, int]]:
    """Return the models and tp to try: all asked for, or all there may be."""
    if _composes_any(tables):
        names = sorted(models()) if model is None else [model]
        return [(n, t) for n in names for t in (TP_CHOICES if tp is None else (tp,))]
    there = [
        pair for kind in ("dense",) if kind in tables for pair in measured_layouts(tables[kind])
    ]
    if model is not None and tp is not None:
        return [(model, tp)]
    found = [(n, t) for n, t in there if model in (None, n) and tp in (None, t) and n in models()]
    if found:
        return found
    valid = "; ".join(f"{n} tp {t}" for n, t in there)
    raise BadInput(f"no operator tables for model {model}, tp {tp}; measured: {valid}")


def _composes_any(tables: dict[str, Table]) -> bool:
    return "gemm" in tables


def _stand_in(tables_dir: Path, gpu: str) -> dict[str, Table]:
    if gpu not in STAND_IN:
        return {}
    try:
        return read_tables(tables_dir, STAND_IN[gpu])
    except BadInput:  # then only the GPU's own tables count
        return {}


def _operators(
    tables: dict[str, Table], stand_in: dict[str, Table], name: str, gpu: str, tp: int
) -> Operators:
    """Return the operators of a layout that exists and fits; else `BadInput`."""
    model, device = model_named(name), gpu_named(gpu)
    check_layout(model, tp)
    room = _room(model, gpu, tp)
    needed = min(LEAST_KV_TOKENS, model.max_length)
    if room < needed:
        raise BadInput(
            f"{name} does not fit {tp} x {gpu}: beside {model.weight_bytes(DTYPE) / 1e9:.1f} GB of "
            f"weights there is room for {max(0, room)} KV tokens, {needed} are needed"
        )
    if _composes_any(tables):
        return MatrixOperators(tables, stand_in, model, device, tp)
    return LayerOperators(tables, model, device, tp)


def _room(model: Model, gpu: str, tp: int) -> int:
    """Return the KV tokens that theory leaves room for."""
    blocks = kv_blocks_by_formula(model, gpu_named(gpu), tp, 1, DTYPE, BLOCK_SIZE)
    return BLOCK_SIZE * blocks


# -- the fit ------------------------------------------------------------------------------------


def _fit_one(operators: Operators, name: str, gpu: str, tp: int, path: Path) -> Report:
    """Fit, judge and write the profile of one layout."""
    model = model_named(name)
    rng = np.random.default_rng(FIT_SEED)
    seen = [
        _drawn(operators, model, gpu, tp, source, FIT_SEED).sample(FIT_STEPS, rng)
        for source in SOURCES
    ]
    grid = decode_grid(_room(model, gpu, tp))
    steps = joined([*seen, grid, short_prompts(rng, SHORT_BATCHES)])
    terms = fit_terms(operators, steps, model, tp)
    profile = _profile(operators, terms, steps, name, gpu, tp, path.stem)
    judged = {
        source: _drawn(operators, model, gpu, tp, source, JUDGE_SEED).sample(JUDGED_STEPS, rng)
        for source in SOURCES
    }
    together = joined(list(judged.values()))
    parts = {**judged, "all": together, "short prompts": short_prompts(rng, SHORT_BATCHES)}
    whole = {what: judge(operators, profile, model, steps) for what, steps in parts.items()}
    held_out = _held_out(whole)
    output_folder(path.parent)
    write_profile(profile.model_copy(update={"held_out_error": held_out}), path)
    return Report(path.stem, path, "", whole, judge_terms(operators, terms, together, model))


def _drawn(operators: Operators, model: Model, gpu: str, tp: int, source: str, seed: int) -> Steps:
    """Return the steps of a workload's replays that the tables cover."""
    steps = replayed(model.name, gpu, tp, model.max_length, source, seed)
    return steps.where(steps.tokens <= operators.most_tokens)


# -- the file -----------------------------------------------------------------------------------


def _profile(
    operators: Operators, terms: Terms, steps: Steps, name: str, gpu: str, tp: int, stem: str
) -> Profile:
    files = sorted(set(operators.files))
    origins = [origin for start, origin in ORIGINS.items() if files[0].startswith(start)]
    return Profile(
        name=stem,
        gpu=gpu,
        model=name,
        tp=tp,
        dtype=DTYPE,
        engine=ENGINE,
        versions={"vllm": origins[0][1]} if origins else {},
        basis="derived",
        default=is_default(name, gpu, tp, stem),
        fitted_range=FittedRange(
            step_tokens=(1, min(LARGEST_STEP_TOKENS, operators.most_tokens)),
            batch=(1, int(steps.batch.max())),
            kv_tokens=(0, int(steps.kv.max())),
        ),
        source=": ".join([*(origin for origin, _ in origins), ", ".join(files)]),
        derivation=operators.derivation,
        notes=operators.notes,
        terms=terms,
    )


def _held_out(whole: dict[str, Errors]) -> HeldOutError:
    """Return what a profile says of its error: whole steps of both workloads, and of each."""
    phases = {
        what: PhaseError(
            points=found.points,
            median_abs_frac=_rounded(found.median),
            p95_abs_frac=_rounded(found.p95),
            mean_abs_frac=_rounded(found.mean),
            bias_frac=_rounded(found.bias),
        )
        for what, found in whole.items()
        if what in SOURCES
    }
    found = whole["all"]
    return HeldOutError(
        points=found.points,
        mean_abs_frac=_rounded(found.mean),
        bias_frac=_rounded(found.bias),
        phases=phases,
    )


def _rounded(error: float) -> float:
    return round(error, 4)


def is_default(name: str, gpu: str, tp: int, stem: str) -> bool:
    """Whether `auto` has no other shipped profile to choose."""
    others = sorted(PROFILE_DIR.glob(f"{profile_stem(name, gpu, tp)}_*.yaml"))
    return not any(load_profile(path).default for path in others if path.stem != stem)
