"""Measure, fit and replay on the CPU, as small as it goes: it runs, and both sides agree on who."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from calibrate import measure, points, rig
from calibrate.diff import same_requests
from calibrate.replay import CPU, Scenario, replay_folder
from sim.cli import main
from sim.costs.profile import load_profile
from sim.types import BadInput

SMALL = Scenario(seconds=0.3, max_model_len=64, max_output_len=8, loads=(0.8,))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return a folder with samples and profiles of the tiny model: few and small steps."""
    folder = tmp_path_factory.mktemp("measured")
    whole = points.grid
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "grid", lambda *arguments: whole(*arguments)[:64])
        patch.setattr(rig, "CPU_STEP_TOKENS", 128)
        patch.setattr(rig, "CPU_SEQUENCES", 8)
        patch.setattr(rig, "CPU_KV_BYTES", 4 << 20)
        patch.setattr(measure, "MAX_RUNS", 2)
        assert main(["calibrate", "measure", "--out", str(folder), "--budget-minutes", "9"]) == 0
    assert main(["calibrate", "fit", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def replayed(measured):
    said = []
    found = replay_folder(measured, "cpu", None, SMALL, said.append)
    return measured / "replay", found, said


def test_both_sides_hold_the_same_requests(replayed):
    folder, _, said = replayed
    table = pd.read_parquet(folder / "requests.parquet")
    assert set(table["side"]) == {"real", "simulated", "repeated", "longer"}
    for policy in ("continuous", "static", "bucketserve"):
        chosen = table[table["policy"] == policy]
        real, simulated = (chosen[chosen["side"] == side] for side in ("real", "simulated"))
        assert len(real) >= 2
        assert same_requests(real, simulated)
        assert (real["finish_s"] > real["arrival_s"]).all()
        longer = chosen[chosen["side"] == "longer"]
        assert longer["finish_s"].max() > simulated["finish_s"].max()
    assert len(said) == 3


def test_the_folder_says_everything(replayed):
    folder, found, _ = replayed
    names = {path.name for path in folder.iterdir()}
    assert names >= {"requests.parquet", "engine.yaml", "diff.md", "cdf.png"}
    text = (folder / "diff.md").read_text()
    for policy in ("continuous", "static", "bucketserve"):
        assert f"## {policy} at 80% of the saturation rate" in text
    assert "| continuous at 80% | ragged | decode |" in text
    assert "| static at 80% | padded | decode |" in text
    assert len(found) == 3 * 10
    engines = list(yaml.safe_load_all((folder / "engine.yaml").read_text()))
    assert [engine["policy"][0]["name"] for engine in engines if engine] == [
        "continuous",
        "static",
        "bucketserve",
    ]


def test_the_wall_clock_profile_holds_the_engines_own_time(measured, replayed):
    folder, _, _ = replayed
    (fitted,) = measured.glob("*_torch-ragged.yaml")
    host = load_profile(fitted).terms.host
    wall, device = (
        load_profile(folder / f"profile_ragged_{clock}.yaml").terms.host
        for clock in ("wall", "device")
    )
    assert wall.step_ms + wall.seq_ms > host.step_ms + host.seq_ms
    assert device.step_ms == device.seq_ms == 0


def test_the_command_prints_one_json(measured, capsys):
    options = ["--policies", "static", "--loads", "0.5", "--seconds", "0.3", "--json"]
    assert main(["calibrate", "replay", str(measured), "--out", str(measured / "r"), *options]) == 0
    assert '"error"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loads", "0.5,x"], "--loads x: must be a number above 0"),
        (["--seconds", "-1"], "--seconds -1.0: must be a number above 0"),
        (["--policies", "static,orca"], "'orca' is not replayed; valid: continuous"),
        (["--device", "cuda"], "cuda"),
    ],
)
def test_bad_input_is_one_line(measured, capsys, options, message):
    assert main(["calibrate", "replay", str(measured), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_folder_without_profiles(measured, tmp_path):
    for name in ("samples.csv", "samples.json"):
        (tmp_path / name).write_bytes((measured / name).read_bytes())
    with pytest.raises(BadInput, match="run calibrate fit first"):
        replay_folder(tmp_path, "cpu", None, CPU, print)
    with pytest.raises(BadInput, match=r"samples\.json: cannot be read"):
        replay_folder(Path("/nowhere"), "cpu", None, CPU, print)
