import json
import math

import pyarrow.parquet as pq
import pytest
import yaml

from sim.study.config import load_config, resolve
from sim.study.files import json_text, output_folder, write_json
from sim.study.output import write_comparison, write_result
from sim.study.run import compare, run
from sim.types import BadInput

REQUEST_COLUMNS = (
    "replication request_id arrival_s input_len output_len emitted_tokens source task priority "
    "deadline_s prefill_instance decode_instance queued_s prefill_start_s prefill_end_s "
    "transfer_start_s transfer_end_s first_token_s finish_s preemptions cached_tokens retries "
    "status"
)
STEP_COLUMNS = (
    "replication instance start_s n_steps duration_s kind prefill_requests prefill_tokens "
    "padded_tokens decode_requests kv_tokens queue_len"
)


def experiment(policy="continuous", **run_section):
    return resolve(
        {
            "cluster": {"gpu": "a100-40gb", "count": 2, "model": "llama-2-13b"},
            "policy": policy,
            "workload": {
                "source": "alpaca",
                "num_requests": 30,
                "arrivals": {"process": "poisson", "rate": 5},
            },
            "run": {"replications": 2, "steps": True, **run_section},
        },
        "test",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("result")
    write_result(run(experiment()), folder)
    return folder


def test_columns_are_those_of_the_contract(folder):
    requests = pq.read_table(folder / "requests.parquet")
    steps = pq.read_table(folder / "steps.parquet")
    assert " ".join(requests.column_names) == REQUEST_COLUMNS
    assert " ".join(steps.column_names) == STEP_COLUMNS
    assert len(requests) == 60
    assert set(requests["replication"].to_pylist()) == {0, 1}
    assert set(requests["status"].to_pylist()) == {"finished"}
    assert set(requests["source"].to_pylist()) == {"alpaca"}
    assert set(steps["kind"].to_pylist()) <= {"prefill", "decode", "mixed"}


def test_the_summary_has_intervals_notes_and_no_wall_times(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["n_replications"] == 2
    assert summary["mean_ttft_ms_ci_low"] < summary["mean_ttft_ms"]
    assert summary["slo_attainment"] is None  # no bounds
    assert any("not measured" in note for note in summary["notes"])
    assert len(summary["replications"]) == 2
    assert not [key for key in summary if "cpu" in key or "rss" in key]
    assert set(json.loads((folder / "timing.json").read_text())) == {
        "cpu_s", "events", "peak_rss_bytes",
    }  # fmt: skip


def test_the_written_config_gives_the_same_results(folder, tmp_path):
    text = (folder / "config.yaml").read_text()
    assert "gpu: a100-40gb  # test" in text
    assert "num_gpu_blocks: null  # profile: 961" in text
    about = yaml.safe_load(text)["about"]
    assert about["instances"][0]["count"] == 2
    assert list(about["profiles"]) == ["llama-2-13b_a100-40gb_tp1_distserve-scaled"]
    write_result(run(load_config(folder / "config.yaml")), tmp_path)
    for name in ("summary.json", "requests.parquet", "steps.parquet"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_comparison_has_a_folder_for_each_label(tmp_path):
    policies = [{"name": "static"}, {"name": "static", "label": "small", "max_batch_size": 2}]
    write_comparison(compare(experiment(policies)), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"static", "small", "comparison.json"}
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert list(comparison["differences"]) == ["small"]
    assert set(comparison["rankings"]["mean_ttft_ms"]["order"]) == {"static", "small"}
    again = load_config(tmp_path / "small" / "config.yaml")
    assert [(p.label, p.params.max_batch_size) for p in again.policies] == [("small", 2)]


def test_undefined_numbers_are_null():
    values = {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": None}}
    assert json.loads(json_text(values)) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_a_file_that_cannot_be_completed_is_not_there(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        output_folder(tmp_path / "file" / "x")
