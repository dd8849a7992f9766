"""What the README prints works as printed: its commands, and its policy in one file."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sim.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for line in README.splitlines()
    if line.startswith("bucketsim ")
]
CONFIG = next(b for b in re.findall(r"```yaml\n(.*?)```", README, re.S) if "cluster:" in b)
POLICY = re.search(r"<!-- example policy -->\n```python\n(.*?)```", README, re.S).group(1)


def test_the_readme_shows_every_command_of_this_release():
    shown = {command[0] for command in COMMANDS}
    assert shown >= {
        *("run", "compare", "sweep", "results", "capacity", "tune", "report"),
        *("cite", "policies", "profiles", "workload"),
    }


def test_every_command_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sim.study.run.SATURATION_REQUESTS", 400)
    Path("exp.yaml").write_text(CONFIG.replace("num_requests: 2000", "num_requests: 100"))
    for command in COMMANDS:
        assert main(command) == 0, command
        said = capsys.readouterr()
        assert said.out or said.err, command
    assert Path("results/out/exp/summary.json").exists()
    assert Path("results/out/timeline.json").exists()
    assert Path("lengths.png").exists()


def test_the_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository with the README's policy added: no other edit."""
    for name in ("sim", "policies", "workloads", "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / "policies" / "shortest.py").write_text(POLICY)
    (tmp_path / "exp.yaml").write_text(CONFIG.replace("num_requests: 2000", "num_requests: 50"))
    return tmp_path


def in_copy(copy, *command):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=copy, capture_output=True, text=True, check=False
    )


def test_its_policy_needs_no_other_edit(copy):
    listed = in_copy(copy, "sim.cli", "policies")
    assert "shortest" in listed.stdout
    compared = in_copy(copy, "sim.cli", "compare", "exp.yaml", "--policies", "continuous,shortest")
    assert compared.returncode == 0, compared.stderr
    assert "shortest" in compared.stdout
    tests = ("tests/properties", "tests/unit/test_policy_registry.py")
    tested = in_copy(copy, "pytest", *tests, "-k", "shortest", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    assert int(re.search(r"(\d+) passed", tested.stdout).group(1)) >= 2
