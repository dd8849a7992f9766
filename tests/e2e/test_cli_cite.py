"""`bucketsim cite` on what `run` and `compare` write, and on what they do not."""

import pytest

from sim.cli import main

CONFIG = """
cluster: {gpu: a100-40gb, count: 2, model: llama-2-13b}
policy: [static, continuous]
workload:
  source: mixed
  mixture: {alpaca: 0.5, sharegpt: 0.5}
  num_requests: 20
  max_model_len: 4096
  arrivals: {process: poisson, rate: 5}
"""


@pytest.fixture
def cli(capsys):
    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def keys_of(text):
    return {line.split("{")[1].rstrip(",") for line in text.splitlines() if line[:1] == "@"}


POWER = {"patel2024splitwise", "vllmsemanticrouter"}
"""Of the energy, which is counted on this GPU though nobody asked."""
USED = POWER | {
    "zhong2024distserve",
    "touvron2023llama2",
    "taori2023alpaca",
    "sharegpt",
    "bucketsim",
}
"""Profile, model, data and program of the config above."""


def test_a_run_is_cited(cli, config, tmp_path):
    assert cli("run", config, "policy=continuous", "--out", tmp_path / "out")[0] == 0
    status, out, err = cli("cite", tmp_path / "out")
    assert (status, err) == (0, "")
    assert keys_of(out) == USED | {"kwon2023vllm"}
    assert "version = {0." in out
    assert "no entry" not in out


def test_a_comparison_is_cited_with_all_its_policies(cli, config, tmp_path):
    assert cli("compare", config, "--out", tmp_path / "out")[0] == 0
    status, out, _ = cli("cite", tmp_path / "out")
    assert status == 0
    assert keys_of(out) == USED | {"kwon2023vllm", "yu2022orca"}


def test_what_is_unknown_is_named(cli, config, tmp_path):
    assert cli("run", config, "policy=static", "--out", tmp_path / "out")[0] == 0
    written = tmp_path / "out" / "config.yaml"
    text = written.read_text().replace("name: static", "name: mine")
    text = text.replace("model: llama-2-13b", "model: my-model").replace("sharegpt:", "my.csv:")
    written.write_text(text)
    status, out, _ = cli("cite", tmp_path / "out")
    assert status == 0
    missing = [line for line in out.splitlines() if line.startswith("% ")]
    assert missing == [
        "% no entry for policy mine",
        "% no entry for model my-model",
        "% no entry for data set my.csv",
    ]
    assert keys_of(out) == {"zhong2024distserve", "taori2023alpaca", "bucketsim"} | POWER


def test_without_power_data_none_are_cited(cli, config, tmp_path):
    gpu = ("cluster.gpu=l40s", "cluster.model=llama-3.1-8b", "cluster.profile=roofline")
    assert cli("run", config, "policy=static", *gpu, "--out", tmp_path / "out")[0] == 0
    assert not POWER & keys_of(cli("cite", tmp_path / "out")[1])


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no config.yaml"), ("a: [", "line 1"), ("- 1", "policy: not as run"),
     ("policy: []\ncluster: {}\nworkload: {}", "about: not as run")],
)  # fmt: skip
def test_bad_folders_are_refused_in_one_line(cli, tmp_path, text, said):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(CONFIG)  # not a comparison: not looked at
    status, out, err = cli("cite", tmp_path)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_policies_are_listed_with_roles_and_papers(cli):
    status, out, _ = cli("policies")
    assert status == 0
    line = next(line for line in out.splitlines() if line.strip().startswith("distserve"))
    assert "prefill+decode" in line
    assert "Zhong et al., OSDI 2024, arXiv:2401.09670" in line
