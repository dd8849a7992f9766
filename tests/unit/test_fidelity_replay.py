"""Replays of measured runs, their errors, the fit, the ablation."""

from dataclasses import replace

import numpy as np
import pytest
from fidelity_runs import BASE, blank_run, experiment, served, write

from sim.study.fidelity.ablation import AS_MODELLED, ablate, feature_changes, term_changes
from sim.study.fidelity.engine_file import Settings, read_engine, typed_settings
from sim.study.fidelity.errors import ALL, bands, figures, mape, of
from sim.study.fidelity.fit import fit_constants, parse_constants, parse_rows
from sim.study.fidelity.measured import read_measured
from sim.study.fidelity.offsets import step_offsets
from sim.study.fidelity.output import content_of, engine_text, write_validation
from sim.study.fidelity.replay import experiment_of, replay
from sim.study.files import json_text
from sim.types import BadInput

HOST = ("engine.host_step_ms=2", "engine.host_prefill_ms=6")


@pytest.fixture
def run(tmp_path):
    return served(tmp_path / "run.csv", *HOST)


def test_a_run_of_the_simulator_is_met_exactly(run):
    made = replay(run, experiment(run, *HOST))
    found = figures(made)
    assert max(abs(f.error) for f in found) < 1e-9
    assert max(f.mape for f in found if f.mape == f.mape) < 1e-9
    assert made.steps > 1000
    assert made.extrapolated_steps == 0


def test_errors_are_of_simulated_over_measured(run):
    slower = dict(run.latency_ms)
    slower["ttft"] = slower["ttft"] * 0.8
    made = replay(replace(run, latency_ms=slower), experiment(run, *HOST, "slo.ttft_ms=60"))
    found = figures(made)
    mean = of(found, "ttft", "mean")
    assert mean.error == pytest.approx(0.25)
    assert mean.mape == pytest.approx(0.25)
    met = of(found, "slo", "TTFT")
    assert met.measured == pytest.approx((slower["ttft"] <= 60).mean())
    assert met.error == pytest.approx(met.simulated - met.measured)
    assert met.error < 0
    assert of(found, "slo", ALL).requests == 60


def test_every_request_is_in_one_load_band(run):
    made = replay(run, experiment(run, *HOST))
    found = bands(made)
    members = np.array([band.members for band in found])
    assert (members.sum(axis=0) == 1).all()
    names = [band.name for band in found]
    assert names[0] == "0-3 in flight"
    crowded = replay(run, experiment(run, *HOST, "policy.max_num_seqs=2"))
    assert any(band.name.startswith("2-3 in flight, no free seat") for band in bands(crowded))


def test_requests_that_are_not_served_are_left_out_and_said(run):
    made = replay(run, experiment(run, "engine.num_gpu_blocks=40"))
    lost = [note for note in made.notes if "not served by the simulator" in note]
    assert lost
    assert of(figures(made), "ttft", "mean").requests < 60


def test_mape_leaves_out_what_is_unknown():
    nan = float("nan")
    assert mape(np.array([2.0, nan, 3.0]), np.array([1.0, 1.0, 4.0])) == pytest.approx(0.625)
    assert np.isnan(mape(np.array([nan]), np.array([1.0])))


def test_a_guessed_kv_cache_is_said(run):
    made = replay(run, experiment(run))
    assert made.kv_guess.startswith("KV cache size guessed: ")
    assert next(iter(content_of(made))) == "kv_size_guessed"
    assert replay(run, experiment(run, "engine.num_gpu_blocks=3000")).kv_guess is None


def test_gpu_and_model_have_to_be_known(run):
    with pytest.raises(BadInput, match=r"says nothing about the gpu: add cluster.gpu=NAME"):
        experiment_of(run, Settings())
    with pytest.raises(BadInput, match="says nothing about the model"):
        experiment_of(run, Settings(), ["cluster.gpu=h100"])


def test_origins_name_file_and_command_line(run, tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("engine: {num_gpu_blocks: 3000}\npolicy: {max_num_seqs: 8}\n")
    found = experiment_of(run, read_engine(path), [*BASE[:2], "policy.max_num_seqs=4"])
    assert found.origin("engine.num_gpu_blocks") == str(path)
    assert found.origin("policy.0.max_num_seqs") == "command line"
    assert found.origin("engine.block_size") == "default"


# -- the fit ------------------------------------------------------------------------------------


def test_the_fit_finds_what_was_put_in(tmp_path):
    put = {"host_step_ms": 2.0, "host_seq_ms": 0.4, "host_prefill_ms": 6.0, "api_latency_ms": 9.0}
    run = served(tmp_path / "run.csv", *(f"engine.{k}={v}" for k, v in put.items()), n=120)
    found = fit_constants(run, lambda more: experiment(run, *more), list(put), np.arange(120))
    for name, value in put.items():
        assert found.values_ms[name] == pytest.approx(value, rel=0.1), name
        assert found.errors_ms[name] < 0.2 * value
    assert found.after < 0.1 * found.before
    assert found.provenance == "fitted on rows 0-119 (120 requests) of run"


def test_the_fit_sees_only_its_rows(run):
    latency = {key: values.copy() for key, values in run.latency_ms.items()}
    for values in latency.values():
        values[30:] *= 7
    spoilt = replace(run, latency_ms=latency)
    found = [
        fit_constants(each, lambda more: experiment(run, *more), ["host_step_ms"], np.arange(30))
        for each in (run, spoilt)
    ]
    assert found[0].values_ms == found[1].values_ms
    assert found[0].rows == (0, 29)


def test_bad_fits(run):
    with pytest.raises(BadInput, match="'gamma' may not be fitted; valid: host_step_ms"):
        parse_constants("host_step_ms,gamma")
    with pytest.raises(BadInput, match="expected FIRST:END within 0:60"):
        parse_rows("10:70", 60)
    assert parse_rows("10:", 60).tolist() == list(range(10, 60))
    with pytest.raises(BadInput, match="5 rows are too few; at least 20"):
        fit_constants(run, experiment, ["host_step_ms"], np.arange(5))
    with pytest.raises(BadInput, match="arrivals are not measured"):
        fit_constants(replace(run, arrivals="closed"), experiment, ["host_step_ms"], np.arange(60))


def test_an_engine_file_of_a_fit_gives_the_same_replay(run, tmp_path):
    given = typed_settings(BASE)
    names = ["host_step_ms", "host_prefill_ms"]
    fitted = fit_constants(run, lambda more: experiment(run, *more), names, np.arange(60))
    path = tmp_path / "engine.yaml"
    path.write_text(engine_text(given, fitted))
    assert fitted.provenance in path.read_text()
    again = replay(run, experiment_of(run, read_engine(path)))
    made = replay(run, experiment(run, *fitted.overrides()))
    assert (again.latency_ms["e2el"] == made.latency_ms["e2el"]).all()


def test_what_the_profile_lacks_per_step_is_found(run):
    made = replay(run, experiment(run, *HOST))
    found = step_offsets(made, {"host_step_ms": 2.0, "host_prefill_ms": 6.0})
    for offset in found:
        expected = 2.0 + 6.0 * offset.prefill_share
        assert offset.missing_ms == pytest.approx(expected, rel=0.02)
        assert offset.fitted_ms == pytest.approx(offset.measured_ms)


# -- one thing taken away -----------------------------------------------------------------------


def test_ablation_takes_one_thing_away_at_a_time(run):
    def with_host(more=()):
        return experiment(run, *HOST, *more)

    made = replay(run, with_host())
    profile = made.setup.instances[0].costs.profile
    changes = [*feature_changes(made), *term_changes(profile)]
    found = {row.name: row.figures for row in ablate(run, with_host, changes)}
    assert next(iter(found)) == AS_MODELLED
    error = {name: of(rows, "tpot", "mean").error for name, rows in found.items()}
    assert error[AS_MODELLED] == pytest.approx(0, abs=1e-9)
    assert error["no host and API constants"] < error["host_step_ms 0"] < 0
    for name in ("no lm_head", "no prefill attention", "decode attention: no KV term"):
        assert error[name] < 0, name
    assert "KV blocks x 0.9" in found


# -- what is left behind ------------------------------------------------------------------------


def test_the_folder_of_a_validation_is_the_same_every_time(run, tmp_path):
    made = replay(run, experiment(run, *HOST))
    for name in ("a", "b"):
        write_validation(made, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.yaml", "figures.csv", "requests.csv", "validation.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = (tmp_path / "a" / "requests.csv").read_text().splitlines()
    assert len(rows) == 61
    assert rows[0].startswith("request,arrived_at_s,prompt_tokens,output_tokens,ttft_ms")
    again = read_measured(tmp_path / "a" / "requests.csv")
    assert again.latency_ms["ttft"] == pytest.approx(run.latency_ms["ttft"])
    assert "NaN" not in json_text(content_of(made))


def test_reconstructed_arrivals_have_no_errors_of_single_requests(tmp_path):
    path = blank_run(tmp_path / "run.csv")
    measured = replace(read_measured(path), arrivals="reconstructed")
    made = replay(measured, experiment(measured))
    found = figures(made)
    assert {figure.band for figure in found} == {ALL}
    assert all(np.isnan(figure.mape) for figure in found)
    write_validation(made, tmp_path / "out")
    assert not (tmp_path / "out" / "requests.csv").exists()


def test_clients_in_a_closed_loop_wait_for_their_answers(tmp_path):
    path = tmp_path / "run.csv"
    write(path, [(0, 100, 20, 10.0, 50.0)] * 12)
    measured = replace(read_measured(path), arrivals="closed", concurrency=3)
    made = replay(measured, experiment(measured))
    arrival = np.sort(made.record.requests["arrival_s"])
    assert (arrival[:3] == 0).all()
    assert (arrival[3:] > 0).all()
