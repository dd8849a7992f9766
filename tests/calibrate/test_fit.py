"""Profiles from samples: known engines come back, files work as written, bad input is named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic import ABOUT, MODEL, TERMS, cost_of, grid, measured, other_grid, step

from calibrate.fit import FORMS, NEEDED_POINTS, fit_folder, fit_samples, write_profile
from calibrate.forward import FEW_BANDS, Form, Rows, _predicted, fit_host, fit_terms
from calibrate.samples import SampleWriter
from calibrate.score import evaluate, predicted_ms, split
from calibrate.solve import ramps
from sim.costs.build import instance_cost
from sim.costs.catalogue import model_named
from sim.costs.model import StepCost
from sim.costs.profile import GAMMA_WITHOUT_FIT, HeldOutError, PhaseError, Terms, load_profile
from sim.types import BadInput

OWN_DECODE = {
    **TERMS,
    "dense_decode": {"knots_tokens_ms": [(1, 4.0), (32, 4.5), (256, 8.0)]},
    "gamma": 1.3,
}
"""An engine whose decode steps run as CUDA graphs: half of a prefill step of one token."""

SEEDS = range(8)


def fitted_cost(report):
    return StepCost(report.profile, model_named(MODEL))


def identifiable(terms):
    """Return the coefficients that whole forward passes tell apart."""
    dense = terms.dense.curve()
    return {
        "host step": terms.host.step_ms,
        "host sequence": terms.host.seq_ms,
        "host prefill": terms.host.prefill_step_ms,
        "dense at 128": dense.at(128),
        "dense slope": (dense.at(8192) - dense.at(2048)) / 6144,
        "read line": terms.prefill_attention.read_token_ms,
        "compute line": terms.prefill_attention.quad_ms,
        "cached token, batch 1": terms.decode_attention[0].kv_token_ms,
        "cached token": terms.decode_attention[1].kv_token_ms,
        "gamma": terms.gamma,
    }


TRUE = identifiable(Terms.model_validate(TERMS))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("truth", [TERMS, OWN_DECODE], ids=["shared", "own decode"])
def test_known_engine_without_noise(truth, padded, record_property):
    report = fit_samples(measured(truth, grid(padded)), ABOUT, padded)
    errors = evaluate(fitted_cost(report), measured(truth, other_grid(padded)))
    worst = max(error.p95_abs_frac for error in errors.values())
    assert set(errors) == {"prefill", "decode", "mixed", "all"}
    assert worst <= 0.01
    assert (report.profile.terms.dense_decode is not None) == ("dense_decode" in truth)
    if not padded:  # without prefixes nothing tells the read line from the dense curve
        true, found = identifiable(Terms.model_validate(truth)), identifiable(report.profile.terms)
        assert found == pytest.approx(true, rel=0.01)
        worst = max(worst, *(abs(found[name] / true[name] - 1) for name in true))
    record_property("evidence", f"fit, noise-free, known coefficients: worst error {worst:.2%}")


def test_known_engine_with_noise(record_property):
    found, worst = [], 0.0
    other = measured(TERMS, other_grid())
    for seed in SEEDS:
        report = fit_samples(measured(TERMS, grid(), 0.03, seed), ABOUT)
        errors = evaluate(fitted_cost(report), other)
        worst = max(worst, *(error.p95_abs_frac for error in errors.values()))
        found.append(identifiable(report.profile.terms))
    bias = {n: np.mean([f[n] for f in found]) / TRUE[n] - 1 for n in TRUE}
    spread = {n: np.std([f[n] for f in found]) / TRUE[n] for n in TRUE}
    text = ", ".join(f"{n} {bias[n]:+.1%} (sd of one fit {spread[n]:.1%})" for n in TRUE)
    record_property(
        "evidence",
        f"fit, 3 % noise on every point, {len(SEEDS)} seeds: predictions of other steps, worst p95 "
        f"of a kind and seed {worst:.1%}; mean coefficients {text}",
    )
    assert worst <= 0.05
    assert bias == pytest.approx(dict.fromkeys(TRUE, 0.0), abs=0.05)
    for name, least in least_spread(measured(TERMS, grid()), 0.03).items():
        assert spread[name] <= 1.7 * least  # 8 seeds: 99.5 % of chi-square with 7 degrees


def least_spread(samples, noise):
    """Return the least relative spread any unbiased fit can have (Cramer-Rao).

    Every term and every assignment to a line known, only these coefficients not.
    """
    names = ("chunks", "context_tokens", "quad_tokens", "batch", "kv_tokens", "step_tokens")
    steps = [s for s in samples if s.kind != "mixed"]
    n, context, quad, batch, kv, tokens = (
        np.array([getattr(s, name) for s in steps], dtype=float) for name in names
    )
    pre = TERMS["prefill_attention"]
    compute = pre["base_ms"] + pre["chunk_ms"] * n + pre["quad_ms"] * quad
    computes = (n > 0) & (compute > pre["read_token_ms"] * context)
    dense = ramps(tokens, [knot for knot, _ in TERMS["dense"]["knots_tokens_ms"]])
    lines = [context * ~computes, computes, n * computes, quad * computes]
    design = np.column_stack([dense, batch, kv * (batch == 1), kv * (batch > 1), *lines])
    scaled = design / (noise * np.array([s.device_ms for s in steps]))[:, None]
    spread = np.sqrt(np.diag(np.linalg.inv(scaled.T @ scaled)))
    named = {"cached token, batch 1": -6, "cached token": -5, "read line": -4, "compute line": -1}
    return {name: spread[at] / TRUE[name] for name, at in named.items()}


def test_host_is_wall_minus_device():
    host = fit_host(measured(TERMS, grid()))
    assert host is not None
    assert host.model_dump() == pytest.approx(
        {"step_ms": 0.8, "prefill_step_ms": 1.5, "seq_ms": 0.01, "token_ms": 0, "min_step_ms": 0}
    )
    plain = {**TERMS, "host": {"step_ms": 0.8, "seq_ms": 0.01}}
    host = fit_host(measured(plain, grid()))
    assert host is not None
    assert host.prefill_step_ms == 0.0


@pytest.mark.parametrize("padded", [False, True])
def test_the_least_time_of_steps_with_chunks_comes_back(padded):
    truth = {**TERMS, "launch_ms": 12.0}
    report = fit_samples(measured(truth, grid(padded)), ABOUT, padded)
    assert report.profile.terms.launch_ms == pytest.approx(12.0, rel=0.01)
    errors = evaluate(fitted_cost(report), measured(truth, other_grid(padded)))
    assert max(error.p95_abs_frac for error in errors.values()) < 0.02
    without = fit_samples(measured(TERMS, grid(padded)), ABOUT, padded)
    assert without.profile.terms.launch_ms == 0.0


def test_few_steps_that_keep_the_host_much_longer_do_not_hide_it():
    """As layouts of very long prefixes did."""
    samples = measured(TERMS, grid())
    long = sorted(samples, key=lambda s: s.context_tokens)[-len(samples) // 10 :]
    host = fit_host([replace(s, wall_ms=2 * s.wall_ms) if s in long else s for s in samples])
    assert host is not None
    assert host.step_ms == pytest.approx(0.8, rel=0.1)
    assert host.seq_ms == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_host_that_does_not_show_is_lumped(seed):
    random = np.random.default_rng(seed)
    bare = measured({**TERMS, "host": {}}, grid())
    assert fit_host(bare) is None
    jitter = np.abs(0.02 * random.standard_normal(len(bare)))
    noisy = [
        replace(s, wall_ms=s.wall_ms * (1 + j * (i % 4 == 0)))
        for i, (s, j) in enumerate(zip(bare, jitter, strict=True))
    ]
    report = fit_samples(noisy, ABOUT)
    assert not any(report.profile.terms.host.model_dump().values())
    assert "Host time cannot be told" in report.profile.derivation


def test_mixed_steps_say_how_much_of_a_decode_curve_is_attention():
    """Decode steps alone cannot: a price per decode is in their own curve or in the rows."""
    terms = fit_terms(measured(OWN_DECODE, grid()), Form(separate=True))
    assert terms.gamma == pytest.approx(1.3, rel=1e-3)
    assert terms.decode_attention[1].seq_ms == pytest.approx(0.008, rel=1e-2)
    without = [s for s in measured(OWN_DECODE, grid()) if s.kind != "mixed"]
    assert fit_terms(without, Form(separate=True)).gamma == GAMMA_WITHOUT_FIT
    assert fit_terms(without, Form(separate=False)).gamma >= 1.0


def test_a_few_disturbed_points_do_not_bend_the_fit(monkeypatch):
    samples = measured(TERMS, grid(), 0.01)
    disturbed = [
        replace(s, wall_ms=1.8 * s.wall_ms, device_ms=1.8 * s.device_ms) if i % 12 == 0 else s
        for i, s in enumerate(samples)
    ]
    other = measured(TERMS, other_grid())
    errors = {}
    for rounds in (1, 3):
        monkeypatch.setattr("calibrate.forward.ROUNDS", rounds)
        errors[rounds] = evaluate(fitted_cost(fit_samples(disturbed, ABOUT)), other)["all"]
    assert errors[3].p95_abs_frac <= 0.02
    assert errors[3].mean_abs_frac < 0.5 * errors[1].mean_abs_frac


def test_a_band_that_holds_short_contexts_only_joins_its_neighbour():
    """Batch 1 at 1 and 16 cached tokens does not say what its 2,047 cost."""
    short = [s for s in measured(TERMS, grid(), 0.03) if s.batch != 1 or s.chunks]
    *few, long = measured(TERMS, [step(decodes=[context]) for context in (1, 16, 2000)])
    noisy = [replace(s, wall_ms=s.wall_ms * f, device_ms=s.device_ms * f)
             for s, f in zip(few, (0.95, 1.05), strict=True)]  # fmt: skip
    for separate in (False, True):
        terms = fit_terms([*short, *noisy], Form(separate))
        assert [row.from_batch for row in terms.decode_attention] == [1]
        assert predicted_ms(cost_of(terms), long) == pytest.approx(long.wall_ms, rel=0.2)
        terms = fit_terms([*short, *noisy, long], Form(separate))
        assert [row.from_batch for row in terms.decode_attention] == [1, 2]


def test_table_keeps_every_count():
    samples = measured(TERMS, grid())
    table = fit_terms(samples, Form(False, FEW_BANDS, "table")).dense.knots_tokens_ms
    knots = fit_terms(samples, Form(False)).dense.knots_tokens_ms
    counts = {float(s.step_tokens) for s in samples if s.kind != "mixed"}
    assert {tokens for tokens, _ in table} == counts
    assert len(knots) == 8


def test_split_is_a_property_of_the_points():
    samples = measured(TERMS, grid())
    fitted, aside = split(samples)
    again, aside_again = split(samples[::-1])
    assert set(map(id, aside)) == set(map(id, aside_again))
    assert len(fitted) + len(aside) == len(samples) == len(again) + len(aside_again)
    for kind in NEEDED_POINTS:
        of_kind = [s for s in samples if s.kind == kind]
        share = sum(s.kind == kind for s in aside) / len(of_kind)
        assert 0.12 <= share <= 0.22
        for name in ("step_tokens", "kv_tokens", "quad_tokens", "batch"):
            values = [getattr(s, name) for s in of_kind]
            kept = [getattr(s, name) for s in fitted if s.kind == kind]
            assert (min(kept), max(kept)) == (min(values), max(values))


def test_held_out_error_is_that_of_a_fit_without_them():
    samples = measured(TERMS, grid(), 0.03)
    fitted, aside = split(samples)
    report = fit_samples(samples, ABOUT)
    without = [
        evaluate(cost_of(fit_terms(fitted, Form(separate, bands))), aside)
        for separate, bands in FORMS
    ]
    assert report.held_out in without
    assert evaluate(fitted_cost(report), aside) not in without


def test_residuals_of_the_fit_are_those_of_the_simulator():
    truth = Terms.model_validate({**OWN_DECODE, "host": {}})
    samples = measured(truth.model_dump(), grid())
    priced = [predicted_ms(cost_of(truth), sample) for sample in samples]
    assert _predicted(truth, Rows.of(samples, by_device=True)) == pytest.approx(priced, rel=1e-9)


def test_evaluate_by_hand():
    cost = cost_of(TERMS)
    samples = [
        replace(s, status="ok", device_ms=1.0, wall_ms=predicted_ms(cost, s) / factor)
        for s, factor in zip(
            [step((), [100] * b) for b in (1, 2, 3)] + [step([(64, 0)])],
            (1.1, 0.8, 1.0, 1.02),
            strict=True,
        )
    ]
    errors = evaluate(cost, [*samples, step([(9, 0)])])  # the last has no time
    assert errors["decode"].points == 3
    assert errors["decode"].median_abs_frac == pytest.approx(0.1)
    assert errors["decode"].p95_abs_frac == pytest.approx(0.19)
    assert errors["decode"].bias_frac == pytest.approx(-0.1 / 3, abs=1e-6)
    assert errors["all"].points == 4
    assert errors["all"].mean_abs_frac == pytest.approx(0.32 / 4)
    assert "mixed" not in errors


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the pictures: they take longer than the fits."""
    monkeypatch.setattr("calibrate.fit.draw_fit", lambda *arguments: None)


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes samples and their JSON."""

    def write(samples, about=ABOUT):
        with SampleWriter(tmp_path / "samples.csv") as writer:
            for sample in samples:
                writer.append(sample)
        (tmp_path / "samples.json").write_text(json.dumps(about))
        return tmp_path

    return write


def test_written_profile_is_used_as_it_is(folder):
    samples = measured(OWN_DECODE, grid(), 0.03) + measured(TERMS, grid(True), 0.03)
    reports = fit_folder(folder(samples))
    names = [f"{MODEL}_h100_tp1_torch-{path}" for path in ("ragged", "padded")]
    assert [report.file.stem for report in reports] == names
    for report in reports:
        assert load_profile(report.file) == report.profile
        used = instance_cost(MODEL, "h100", profile_name=str(report.file))
        assert used.num_gpu_blocks == 3000
        mine = fitted_cost(report)
        for sample in other_grid(padded=report.profile.engine == "torch-padded"):
            assert predicted_ms(used.cost, sample) == pytest.approx(
                predicted_ms(mine, sample), rel=1e-6
            )
        assert report.picture.read_bytes().startswith(b"\x89PNG")


def test_marks_are_the_predictions_of_the_profile(folder, undrawn):
    report = fit_folder(folder(measured(TERMS, grid(), 0.03)))[0]
    cost = StepCost(load_profile(report.file), model_named(MODEL))
    fitted, _ = split(measured(TERMS, grid(), 0.03))
    marks = [mark for mark in report.marks if not mark.held_out]
    assert [mark.predicted_ms for mark in marks] == pytest.approx(
        [predicted_ms(cost, s) for s in fitted], rel=1e-6
    )


def test_profile_says_where_it_comes_from(folder, undrawn):
    samples = measured(TERMS, grid(), 0.01)
    profile = fit_folder(folder(samples))[0].profile
    assert (profile.engine, profile.basis, profile.gpu) == ("torch-ragged", "measured", "h100")
    assert profile.versions == {"torch": "2.11.0"}
    assert profile.fitted_range.step_tokens == (1, 8192)
    assert profile.fitted_range.batch == (1, 256)
    assert profile.fitted_range.kv_tokens == (16, 48_000)
    assert "a made-up GPU" in profile.source
    for said in ("inside the dense curve", "attention kernel varlen", "fitted to all points"):
        assert said in profile.derivation
    assert set(profile.held_out_error.phases) == {"prefill", "decode", "mixed"}
    assert not profile.notes


def test_rough_profile_is_written_and_every_run_says_so(folder, undrawn):
    report = fit_folder(folder(measured(TERMS, grid(), 0.3)))[0]
    (note,) = load_profile(report.file).notes
    assert note.startswith(f"{MODEL}_h100_tp1_torch-ragged is rough: held-out error of prefill ")
    assert note in instance_cost(MODEL, "h100", profile_name=str(report.file)).notes
    assert f"note: {note}" in report.lines()


def test_damaged_lines_are_named_and_counted(folder, undrawn):
    path = folder(measured(TERMS, grid())) / "samples.csv"
    lines = path.read_text().splitlines()
    lines[7] = lines[7][:20]
    lines[9] = "junk"
    path.write_text("\n".join(lines))
    text = fit_folder(path.parent)[0].lines()
    assert "2 lines skipped" in text
    assert any(line.startswith(f"{path}:8: ") for line in text)
    assert any(line.startswith(f"{path}:10: 1 columns instead of 19") for line in text)


def test_points_without_a_time_are_left_out(folder, undrawn):
    samples = measured(TERMS, grid())
    lost = replace(samples[5], status="oom", device_ms=None, wall_ms=None)
    report = fit_folder(folder([*samples[:5], lost, *samples[6:]]))[0]
    assert report.left_out == 1
    assert ", 1 without a time" in report.lines()[0]


def test_too_few_points_are_named():
    samples = measured(TERMS, grid())
    few = [s for s in samples if s.kind == "prefill"]
    few += [s for s in samples if s.kind == "decode"][:3]
    with pytest.raises(BadInput) as caught:
        fit_samples(few, ABOUT)
    assert str(caught.value) == (
        "too few points of the ragged path to fit: decode has 3, needs 8; mixed has 0, needs 5"
    )
    same = [s for s in samples if s.kind != "decode" or s.batch in (1, 2)]
    with pytest.raises(BadInput, match="decode has 2 different batch, needs 3"):
        fit_samples(same, ABOUT)
    with pytest.raises(BadInput, match="of the padded path to fit: prefill has 0, needs 10"):
        fit_samples(samples, ABOUT, padded=True)


def test_a_path_with_too_few_points_does_not_stop_the_other(folder, undrawn):
    reports = fit_folder(folder(measured(TERMS, grid()) + measured(TERMS, grid(True)[:30])))
    assert [report.profile.engine for report in reports] == ["torch-ragged"]
    assert any("of the padded path to fit" in line for line in reports[0].lines())


def test_fewest_points_are_enough():
    samples = measured(TERMS, grid())
    few = []
    for kind, count in NEEDED_POINTS.items():
        of_kind = [s for s in samples if s.kind == kind]
        few += of_kind[:: len(of_kind) // count][:count]
    report = fit_samples(few, ABOUT)
    assert {"prefill", "decode"} <= set(report.held_out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": None}, "lacks gpu"),
        ({"gpu": "h1000"}, "unknown GPU 'h1000'"),
        ({"model": "llama-9"}, "unknown model 'llama-9'"),
        ({"torch": None, "num_gpu_blocks": None}, "lacks torch, num_gpu_blocks"),
    ],
)
def test_json_that_says_too_little(change, message):
    with pytest.raises(BadInput, match=message):
        fit_samples(measured(TERMS, grid()), {**ABOUT, **change})


def test_missing_files(folder, tmp_path):
    with pytest.raises(BadInput, match=r"samples\.csv: cannot be read"):
        fit_folder(tmp_path)
    path = folder([])
    with pytest.raises(BadInput, match="holds no measured point"):
        fit_folder(path)
    (path / "samples.json").write_text("[1]")
    with pytest.raises(BadInput, match=r"samples\.json: not the JSON"):
        fit_folder(path)
    (path / "samples.json").unlink()
    with pytest.raises(BadInput, match=r"samples\.json: cannot be read"):
        fit_folder(path)


def test_out(folder, tmp_path, undrawn):
    path = folder(measured(TERMS, grid()))
    file = tmp_path / "deep" / "mine.yaml"
    assert fit_folder(path / "samples.csv", file)[0].file == file
    assert load_profile(file).name == "mine"
    folder(measured(TERMS, grid(True)))
    with pytest.raises(BadInput, match="gives two profiles"):
        fit_folder(path, file)
    assert len(fit_folder(path, tmp_path / "both")) == 2


def test_older_profile_files_stay_valid(tmp_path):
    report = fit_samples(measured(TERMS, grid()), ABOUT)
    old = HeldOutError(points=10, mean_abs_frac=0.02)
    path = tmp_path / "old.yaml"
    write_profile(report.profile.model_copy(update={"held_out_error": old}), path)
    assert load_profile(path).held_out_error == old
    assert "phases" not in path.read_text()
    assert PhaseError.model_fields.keys() >= {"median_abs_frac", "p95_abs_frac", "bias_frac"}
