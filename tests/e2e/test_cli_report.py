"""`report` as a user types it."""

import pytest

from sim.cli import main

CONFIG = """
cluster: {gpu: a100-40gb, count: 1, model: llama-2-13b}
policy: {name: continuous}
workload: {source: alpaca, num_requests: 20, arrivals: {process: poisson, rate: 5}}
"""


@pytest.fixture
def cli(capsys):
    """Return a function that runs a command and returns (status, stdout, stderr)."""

    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


def test_a_run_and_its_report(cli, tmp_path):
    config = tmp_path / "study.yaml"
    config.write_text(CONFIG)
    assert cli("run", config, "--out", tmp_path / "out")[0] == 0
    status, out, err = cli("report", tmp_path / "out")
    assert (status, out) == (0, "")
    assert err.startswith(f"wrote {tmp_path / 'out' / 'report.html'} (")
    path = tmp_path / "pages" / "study.html"
    assert cli("report", tmp_path / "out", "--out", path)[0] == 0
    assert path.read_bytes() == (tmp_path / "out" / "report.html").read_bytes()


def test_a_folder_without_a_result_is_one_line(cli, tmp_path):
    status, out, err = cli("report", tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "nothing to report on; it must hold one of comparison.json (compare)" in err
    status, _, err = cli("report", tmp_path / "none")
    assert status == 2
    assert "is not there" in err
