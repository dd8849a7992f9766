"""`calibrate measure` and `fit` as a user types them, on the CPU and its tiny model."""

import json
import signal
import subprocess
import sys

import pytest

from sim.cli import main
from sim.costs.profile import load_profile


@pytest.fixture
def cli(capsys):
    """Return a function that runs a command and returns (status, stdout, stderr)."""

    def run(*arguments):
        status = main(["calibrate", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def small(monkeypatch):
    """The first 28 points of a grid of small steps, measured once, run as often as they must."""
    pytest.importorskip("torch")
    from calibrate import measure, points, rig

    whole = points.grid
    monkeypatch.setattr(points, "grid", lambda *arguments: whole(*arguments)[:28])
    monkeypatch.setattr(rig, "CPU_STEP_TOKENS", 96)
    monkeypatch.setattr(rig, "CPU_SEQUENCES", 8)
    monkeypatch.setattr(rig, "CPU_KV_BYTES", 4 << 20)
    monkeypatch.setattr(measure, "MAX_RUNS", 4)


def rows(folder):
    from calibrate.samples import read_samples

    found, complaints = read_samples(folder / "samples.csv")
    assert not complaints
    return {row.key: row for row in found}


def test_measure_interrupt_resume_fit(cli, small, monkeypatch, tmp_path):
    """An interrupted measurement goes on; its fit is a profile that `run` takes.

    Points that were visited too seldom when it was interrupted are measured anew.
    """
    from calibrate.rig import DeviceRig

    real, calls = DeviceRig.run, []

    def interrupted(rig, point):
        calls.append(point)
        if len(set(calls)) == 6:
            raise KeyboardInterrupt
        return real(rig, point)

    folder = tmp_path / "measured"
    measure = ("measure", "--out", folder, "--padded", "none", "--budget-minutes", "10")
    monkeypatch.setattr(DeviceRig, "run", interrupted)
    status, out, err = cli(*measure)
    assert (status, out) == (130, "")
    assert "the same command goes on" in err
    before = rows(folder)
    assert len(before) == 5

    monkeypatch.setattr(DeviceRig, "run", real)
    status, out, err = cli(*measure, "--json")
    assert status == 0
    outcome = json.loads(out)
    assert (outcome["kept"], outcome["ok"], outcome["skipped_for_time"]) == (0, 28, 0)
    after = rows(folder)
    assert after.keys() >= before.keys()
    assert all(row.runs == 4 and row.wall_ms >= row.device_ms > 0 for row in after.values())

    about = json.loads((folder / "samples.json").read_text())
    assert (about["model"], about["gpu"], about["dtype"]) == ("tiny-llama", "cpu", "fp32")
    assert about["threads"] == 1
    assert about["kernel"] == {"ragged": "loop"}
    assert about["num_gpu_blocks"] == (4 << 20) // (16 * 4096)
    assert about["points"]["ok"] == 28

    status, out, _ = cli("fit", folder)
    assert status == 0
    assert "held out" in out
    [file] = folder.glob("*.yaml")
    profile = load_profile(file)
    assert (profile.gpu, profile.model, profile.dtype) == ("cpu", "tiny-llama", "fp32")
    assert profile.num_gpu_blocks == about["num_gpu_blocks"]
    assert profile.held_out_error is not None

    config = tmp_path / "config.yaml"
    config.write_text(
        f"cluster: {{gpu: cpu, count: 1, model: tiny-llama, profile: {file}}}\n"
        "policy: continuous\n"
        "workload: {source: alpaca, num_requests: 20, max_model_len: 256,\n"
        "  arrivals: {process: poisson, rate: 1}}\n"
    )
    assert main(["run", str(config)]) == 0


def test_a_dry_run_prints_points_minutes_and_memory(cli, small, tmp_path):
    status, out, _ = cli("measure", "--dry-run")
    assert status == 0
    for word in ("prefill", "decode", "mixed", "host", "minutes", "memory", "28 points"):
        assert word in out
    status, out, _ = cli("measure", "--dry-run", "--json", "--padded", "only")
    plan = json.loads(out)
    assert status == 0
    assert all(group["padded"] for group in plan["groups"])
    assert plan["minutes"] == pytest.approx(sum(group["minutes"] for group in plan["groups"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["measure", "--device", "cuda", "--out", "x"], "device 'cuda'"),
        (["measure", "--device", "tpu", "--out", "x"], "device 'tpu'"),
        (["measure", "--model", "llama-9", "--out", "x"], "unknown model 'llama-9'"),
        (["measure", "--model", "llama-2-70b", "--out", "x"], "does not fit"),
        (["measure"], "--out"),
        (["measure", "--out", "x", "--budget-minutes", "0"], "--budget-minutes 0"),
        (["measure", "--out", "x", "--padded", "maybe"], "--padded"),
        (["fit"], "--operators"),
        (["fit", "x", "--gpu", "h100"], "--gpu"),
        (["fit", "--operators", "x"], "--gpu NAME"),
        (["fit", "x/samples.csv"], "x/samples.csv: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli, tmp_path, monkeypatch, arguments, named):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    status, out, err = cli(*arguments)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("loading")]
    assert len(lines) == 1
    assert named in lines[0]
    assert not list(tmp_path.iterdir())


NO_TORCH = """
import sys

sys.modules["torch"] = None
from sim.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*arguments):
    return subprocess.run(
        [sys.executable, "-c", NO_TORCH, *map(str, arguments)], capture_output=True, text=True
    )


def test_without_torch_measure_says_how_to_install_it(tmp_path):
    done = without_torch("calibrate", "measure", "--out", tmp_path / "x")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'bucketsim[calibrate]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_torch_help_works():
    done = without_torch("calibrate", "--help")
    assert done.returncode == 0
    assert "measure" in done.stdout


@pytest.mark.slow
def test_a_killed_measurement_goes_on(tmp_path):
    """SIGINT from outside, in mid-measurement: exit 130, every finished point kept."""
    pytest.importorskip("torch")
    folder = tmp_path / "measured"
    command = [sys.executable, "-m", "sim.cli", "calibrate", "measure", "--out", str(folder)]
    # Shells let what they run in the background ignore SIGINT, and children inherit that.
    process = subprocess.Popen(
        [*command, "--budget-minutes", "1"],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    path = folder / "samples.csv"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 6):
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    before = rows(folder)
    assert len(before) >= 5
    assert main([*command[3:], "--budget-minutes", "0.2"]) == 0
    after = rows(folder)
    assert after.keys() >= before.keys()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_the_fit_on_the_cpu_predicts_what_it_did_not_see(cli, tmp_path, attempt, record_property):
    """Issue 4: held-out points, median error <= 10 %, p95 <= 25 %, 3 runs of 3."""
    pytest.importorskip("torch")
    assert cli("measure", "--out", tmp_path)[0] == 0
    status, out, _ = cli("fit", tmp_path, "--json")
    assert status == 0
    for fitted in json.loads(out)["profiles"]:
        error = fitted["held_out"]["all"]
        record_property(
            "evidence",
            f"{fitted['profile']}, run {attempt + 1} of 3, {error['points']} held-out points: "
            f"median {error['median_abs_frac']:.1%}, p95 {error['p95_abs_frac']:.1%}",
        )
        assert error["median_abs_frac"] <= 0.10
        assert error["p95_abs_frac"] <= 0.25
