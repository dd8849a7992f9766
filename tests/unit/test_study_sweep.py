import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from small_sweeps import shards_of, sweep_into, write_config

import policies
from sim.costs.library import find_profile
from sim.study import load, provenance
from sim.study.sweeps import shards
from sim.study.sweeps import task as sweep_task
from sim.study.sweeps.results import point_summaries, query, read_results
from sim.study.sweeps.sweep import first_task_s, plan_sweep
from sim.types import BadInput, SimulationError


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def failing(monkeypatch, seeds):
    """Make the tasks of these seeds fail."""
    real = sweep_task.replicate

    def replicate(experiment, choice, index):
        if experiment.run.seed in seeds:
            raise RuntimeError("no luck")
        return real(experiment, choice, index)

    monkeypatch.setattr(sweep_task, "replicate", replicate)


# -- shards -------------------------------------------------------------------------------------


def test_a_row_for_each_task_in_the_order_of_the_sweep(tmp_path, out):
    config = write_config(tmp_path, "{workload.arrivals.rate: [8, 2]}", replications=2)
    done = sweep_into(out, config)
    assert (done.total, done.ran, done.found, done.failed) == (4, 4, 0, {})
    table = load(out)
    assert list(table["workload.arrivals.rate"]) == [8, 8, 2, 2]
    assert list(table["replication"]) == [0, 1, 0, 1]
    assert set(table["policy"]) == {"continuous"}
    assert (table["completed"] == 20).all()
    classes = json.loads(table["classes"][0])
    assert classes["source"]["alpaca"]["completed"] == 20


def test_the_same_task_gives_the_same_bytes_and_no_time_in_them(tmp_path, out):
    config = write_config(tmp_path)
    sweep_into(out, config)
    sweep_into(tmp_path / "again", config)
    assert shards_of(out) == shards_of(tmp_path / "again")
    assert len(shards_of(out)) == 3


def test_a_shard_names_config_and_versions(tmp_path, out):
    sweep_into(out, write_config(tmp_path))
    path = next((out / "shards").iterdir())
    about = json.loads(pq.read_metadata(path).metadata[b"bucketsim"])
    assert about["config"]["policy"][0]["name"] == "continuous"
    assert (about["schema"], about["replication"]) == (shards.SCHEMA, 0)


def test_shards_say_what_run_says(tmp_path, out):
    from sim.study.config import load_config
    from sim.study.run import run

    config = write_config(tmp_path, "{run.seed: [7]}", replications=3)
    sweep_into(out, config)
    text = config.read_text().partition("sweep:")[0]
    config.write_text(text)
    single = run(load_config(config, ["run.seed=7"])).summary
    (point,) = point_summaries(read_results(out))
    for key in ("mean_ttft_ms", "mean_ttft_ms_ci_low", "p99_tpot_ms", "n_replications"):
        assert point[key] == single[key]


def test_points_that_come_to_the_same_share_a_task(tmp_path):
    text = "{engine.block_size: {low: 8, high: 9, integer: true}, method: lhs, n: 6}"
    swept = plan_sweep(write_config(tmp_path, text))
    assert (len(swept.points), len(swept.tasks)) == (6, 2)


def test_a_trace_file_with_new_content_is_another_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "t.csv"
    trace.write_text("arrived_at_s,prompt_tokens,output_tokens\n0,5,5\n1,5,5\n")
    config = write_config(tmp_path, "{workload.source: [t.csv]}", requests=2)
    (before,) = plan_sweep(config).tasks
    assert sweep_into(tmp_path / "o", config).ran == 1
    trace.write_text("arrived_at_s,prompt_tokens,output_tokens\n0,5,5\n1,6,5\n")
    (after,) = plan_sweep(config).tasks
    assert before != after


def test_a_profile_of_a_pool_with_new_content_is_another_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_profile("llama-2-13b", "a100-40gb", 1)
    Path("own.yaml").write_text(yaml.safe_dump(shipped.model_dump(mode="json")))
    config = write_config(tmp_path, "{cluster.pools: [[{instances: 1, profile: ./own.yaml}]]}")
    (before,) = plan_sweep(config).tasks
    with Path("own.yaml").open("a") as file:
        file.write("# edited\n")
    assert before not in plan_sweep(config).tasks


class OwnEntry:
    """The entry point of somebody's policy."""

    name = "own"

    def load(self):
        return importlib.import_module("own_policy").Own


def test_a_policy_from_outside_with_new_content_is_another_task(tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "entry_points", lambda group: [OwnEntry()])
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "own_policy.py"
    own.write_text("from policies.continuous import Continuous\n\n\nclass Own(Continuous): ...\n")
    config = write_config(tmp_path, "{policy.name: [own, continuous]}")
    before = set(plan_sweep(config).tasks)
    own.write_text(own.read_text() + "# edited\n")
    assert len(before & set(plan_sweep(config).tasks)) == 1


@pytest.fixture
def copied_engine(tmp_path, monkeypatch):
    """The sources in a folder of their own, where they may be edited."""
    source = Path(provenance.__file__).parents[2]
    for part in ("policies", "sim", "workloads"):
        shutil.copytree(source / part, tmp_path / part, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "sim" / "study" / "provenance.py"))
    provenance.engine_hash.cache_clear()
    yield tmp_path
    provenance.engine_hash.cache_clear()


@pytest.mark.parametrize(
    ("path", "decides"),
    [
        ("policies/static.py", True),
        ("policies/parts/buckets.py", True),
        ("sim/core/instance.py", True),
        ("sim/costs/catalogue/gpus.yaml", True),
        ("sim/study/run.py", True),
        ("workloads/arrivals.py", True),
        ("sim/cli/sweep.py", False),
        ("sim/report/sweeps.py", False),
    ],
)
def test_an_edit_of_the_engine_makes_other_tasks(tmp_path, path, decides, copied_engine):
    config = write_config(tmp_path)
    before = set(plan_sweep(config).tasks)
    edited = copied_engine / path
    edited.write_text(edited.read_text() + "# edited\n")
    provenance.engine_hash.cache_clear()
    assert before.isdisjoint(plan_sweep(config).tasks) is decides


def test_what_a_run_loads_is_of_the_engine_or_only_reads_and_tells():
    source = "import sys, sim.study.run; print(*sys.modules)"
    names = subprocess.check_output([sys.executable, "-c", source], text=True).split()
    ours = [name for name in names if name.partition(".")[0] in ("sim", "policies", "workloads")]
    parts = tuple(part.removesuffix(".py").replace("/", ".") for part in provenance.ENGINE)
    rest = {name for name in ours if not f"{name}.".startswith(tuple(f"{p}." for p in parts))}
    told = {"idle_keys", "notices", "policy_facts", "presets", "validation", "yaml_file"}
    assert rest == {"sim", "sim.study"} | {f"sim.study.{name}" for name in told}


# -- resume -------------------------------------------------------------------------------------


def test_a_folder_with_shards_needs_resume(tmp_path, out):
    config = write_config(tmp_path)
    sweep_into(out, config)
    with pytest.raises(BadInput, match="has 3 finished shards; go on with --resume"):
        sweep_into(out, config)


def test_resume_runs_what_is_missing_and_new(tmp_path, out):
    sweep_into(out, write_config(tmp_path))
    whole = shards_of(out)
    next((out / "shards").iterdir()).unlink()
    done = sweep_into(out, write_config(tmp_path, "{run.seed: [1, 2, 3, 4]}"), resume=True)
    assert (done.found, done.ran) == (2, 2)
    assert whole.items() < shards_of(out).items()
    assert list(load(out)["seed"]) == [1, 2, 3, 4]


def test_shards_of_earlier_code_are_counted_and_left_alone(tmp_path, out, monkeypatch):
    config = write_config(tmp_path)
    sweep_into(out, config)
    monkeypatch.setattr(sweep_task, "engine_hash", lambda: "edited")
    done = sweep_into(out, config, resume=True)
    assert (done.found, done.ran, done.unused) == (0, 3, 3)
    assert len(read_results(out).rows) == 3


def test_more_replications_keep_those_there_are(tmp_path, out):
    sweep_into(out, write_config(tmp_path, replications=2))
    done = sweep_into(out, write_config(tmp_path, replications=3), resume=True)
    assert (done.found, done.ran) == (6, 3)


def test_failed_tasks_are_listed_and_run_again_alone(tmp_path, out, monkeypatch):
    config = write_config(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, {2})
        done = sweep_into(out, config)
    assert (done.ran, len(done.failed)) == (2, 1)
    (failed,) = json.loads((out / "failed.json").read_text())["failed"]
    assert failed["values"] == {"run.seed": 2}
    assert failed["error"] == "RuntimeError: no luck"
    assert "replicate" in failed["traceback"]
    done = sweep_into(out, config, resume=True)
    assert (done.found, done.ran, done.failed) == (2, 1, {})
    assert not (out / "failed.json").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "swap"])
def test_a_corrupt_shard_is_named_set_aside_and_run_again(tmp_path, out, damage):
    config = write_config(tmp_path)
    sweep_into(out, config)
    whole = shards_of(out)
    path, other = sorted((out / "shards").iterdir())[:2]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[60] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(other.read_bytes())
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"shard {path.stem} is corrupt"):
        load(out)
    done = sweep_into(out, config, resume=True)
    assert [p.name for p in done.set_aside] == [f"{path.name}.corrupt"]
    assert (done.found, done.ran) == (2, 1)
    aside = out / "shards" / f"{path.name}.corrupt"
    assert aside.read_bytes() == content
    aside.unlink()
    assert shards_of(out) == whole


def test_no_flipped_bit_goes_unnoticed(tmp_path, out):
    sweep_into(out, write_config(tmp_path, "{run.seed: [1]}"))
    (path,) = (out / "shards").iterdir()
    content = path.read_bytes()
    row = repr(shards.read_told(out, path.stem))
    for at in range(0, len(content), 61):
        damaged = bytearray(content)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        try:
            assert repr(shards.read_told(out, path.stem)) == row, at
        except (shards.CorruptShard, BadInput):
            continue


def test_a_shard_of_another_version_is_refused_by_name(tmp_path, out, monkeypatch):
    config = write_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "__version__", "0.0.1")
        sweep_into(out, config)
    name = next(iter(plan_sweep(config).tasks))
    with pytest.raises(BadInput) as error:
        sweep_into(out, config, resume=True)
    assert name in str(error.value)
    assert "written by bucketsim 0.0.1" in str(error.value)
    assert "use that version, or sweep into another --out" in str(error.value)


def test_left_overs_of_killed_writers_are_removed(tmp_path, out):
    config = write_config(tmp_path)
    sweep_into(out, config)
    (out / "shards" / ".abc.parquet.7.part").write_text("half")
    sweep_into(out, config, resume=True)
    assert not list((out / "shards").glob(".*"))


def test_a_full_disk_stops_the_sweep_and_keeps_the_shards(tmp_path, out, monkeypatch):
    config = write_config(tmp_path)
    real = sweep_task.write_shard
    written = []

    def write(folder, name, content):
        if written:
            # The kernel refuses to write more than this: the error a full disk gives, but for its
            # number.
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            try:
                return real(folder, name, content)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                signal.signal(signal.SIGXFSZ, before)
        written.append(name)
        return real(folder, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_task, "write_shard", write)
        with pytest.raises(SimulationError) as error:
            sweep_into(out, config)
    assert "cannot write: File too large" in str(error.value)
    assert "1 of 3 shards are finished and intact" in str(error.value)
    assert list(shards_of(out)) == [f"{written[0]}.parquet"]
    assert sweep_into(out, config, resume=True).found == 1


# -- workers ------------------------------------------------------------------------------------


def test_a_worker_that_does_not_see_the_folder_returns_the_shard(tmp_path, out, monkeypatch):
    config = write_config(tmp_path)
    sweep_into(tmp_path / "direct", config)
    monkeypatch.setattr(sweep_task, "_sees", lambda job: False)
    monkeypatch.setattr(sweep_task, "write_shard", None)
    sweep_into(out, config)
    assert shards_of(out) == shards_of(tmp_path / "direct")


def test_a_node_with_other_versions_is_named(tmp_path, out, monkeypatch):
    config = write_config(tmp_path)
    versions = dict(sweep_task.packages())
    swept = plan_sweep(config)
    from sim.study.sweeps import sweep

    monkeypatch.setattr(sweep, "packages", lambda: versions | {"numpy": "1.0"})
    done = sweep_into(out, config)
    assert len(done.failed) == len(swept.tasks)
    error = next(iter(done.failed.values())).error
    assert f"numpy {versions['numpy']}, the sweep runs with 1.0" in error


def test_a_node_with_another_trace_is_named(tmp_path, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "t.csv"
    trace.write_text("arrived_at_s,prompt_tokens,output_tokens\n0,5,5\n")
    (task,) = plan_sweep(write_config(tmp_path, "{workload.source: [t.csv]}", 1)).tasks.values()
    trace.write_text("arrived_at_s,prompt_tokens,output_tokens\n0,5,7\n")
    job = sweep_task.Job(str(out), str(tmp_path), "f.yaml", "", sweep_task.packages())
    monkeypatch.chdir("/")
    assert "t.csv has another content here" in sweep_task.run_task(job, task).error
    assert os.getcwd() == str(tmp_path)


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{workload.arrivals.rte: [1]}", "did you mean 'rate'?"),
        ("{workload.arrivals.rate: [1, -2]}", "workload.arrivals.rate: Input should be greater"),
        ("{policy.max_num_seq: [1]}", "did you mean 'max_num_seqs'?"),
        ("{cluster.gpu: [a100-40g]}", "a100-40gb"),
        ("{workload.source: [alpaca, sharegtp]}", "'sharegtp'; did you mean 'sharegpt'?"),
        ("{engine.blocksize: [1]}", "did you mean 'block_size'?"),
    ],
)
def test_every_point_is_validated_before_anything_runs(tmp_path, sweep, message):
    with pytest.raises(BadInput) as error:
        plan_sweep(write_config(tmp_path, sweep))
    assert message in str(error.value)


def test_a_config_without_sweep(tmp_path):
    config = write_config(tmp_path)
    config.write_text(config.read_text().partition("sweep:")[0])
    with pytest.raises(BadInput, match="sweep is missing: what to vary"):
        plan_sweep(config)
    assert len(plan_sweep(config, ["sweep.run.seed=[1, 2]"]).tasks) == 2


def test_indices_need_ranges(tmp_path):
    with pytest.raises(BadInput, match=r"--indices needs sweep.method: sobol"):
        plan_sweep(write_config(tmp_path), indices=True)


def test_reading_what_is_no_sweep(tmp_path, out):
    with pytest.raises(BadInput, match="not a sweep's folder"):
        load(tmp_path)
    sweep_into(out, write_config(tmp_path))
    for path in (out / "shards").iterdir():
        path.unlink()
    with pytest.raises(BadInput, match="no task of the sweep is finished yet"):
        load(out)


# -- results ------------------------------------------------------------------------------------


def test_sql_over_the_rows(tmp_path, out):
    pytest.importorskip("duckdb")
    sweep_into(out, write_config(tmp_path))
    names, rows = query(out, "select seed, completed from results order by seed desc")
    assert (names, rows) == (["seed", "completed"], [(3, 20), (2, 20), (1, 20)])
    path = "'$.source.alpaca.completed'"
    assert query(out, f"select classes->{path} from results limit 1")[1] == [("20",)]
    with pytest.raises(BadInput, match=r"--sql: .*sead"):
        query(out, "select sead from results")


def test_a_missing_value_is_missing(tmp_path, out):
    text = (
        "{policy.name: [continuous, static], policy.max_batch_size: [2], "
        "engine.block_size: [null, 32]}"
    )
    sweep_into(out, write_config(tmp_path, text))
    table = load(out)
    assert pd.isna(table["policy.max_batch_size"]).tolist() == [True, True, False, False]
    assert pd.isna(table["engine.block_size"]).tolist() == [True, False, True, False]


def test_the_first_task_is_timed(tmp_path, out):
    assert 0 < first_task_s(plan_sweep(write_config(tmp_path))) < 60
    assert not out.exists()


def test_a_sweep_ends_with_indices(tmp_path, out):
    from sim.report.indices import draw_indices
    from sim.study.sweeps.indices import write_indices

    text = (
        "{slo.ttft_ms: {low: 20, high: 400}, engine.swap_space_gib: {low: 1, high: 4}, "
        "policy.name: [continuous, static], method: sobol, n: 8}"
    )
    sweep_into(out, write_config(tmp_path, text), indices=True)
    cells = write_indices(read_results(out))
    assert [cell["label"] for cell in cells] == ["continuous", "static"]
    total = cells[0]["figures"]["slo_attainment"]["total"]
    assert total["engine.swap_space_gib"]["value"] == 0
    assert total["slo.ttft_ms"]["value"] > 0.5
    assert "mean_tpot_ms" not in cells[0]["figures"]
    assert draw_indices(out).read_bytes().startswith(b"\x89PNG")
    next((out / "shards").iterdir()).unlink()
    with pytest.raises(SimulationError, match="1 of 64 have no result"):
        write_indices(read_results(out))
