"""What a sweep must show (issue 5): speed, memory, equal bytes on clusters, kills at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from sim.study import load
from sim.study.sweeps.backends import Local, open_backend
from sim.study.sweeps.sweep import plan_sweep, run_sweep

pytestmark = pytest.mark.slow

CONFIG = """
cluster: {{gpu: a100-40gb, count: 4, model: llama-2-13b}}
policy: {{name: continuous}}
workload:
  source: sharegpt
  num_requests: {requests}
  arrivals: {{process: poisson, rate: 8}}
slo: {{ttft_ms: 500, tpot_ms: 200}}
run: {{replications: 1}}
sweep:
  workload.arrivals.rate: {{low: 2, high: 12}}
  policy.max_num_seqs: {{low: 16, high: 512, log: true, integer: true}}
  engine.num_gpu_blocks: {{low: 300, high: 900, integer: true}}
  method: lhs
  n: {points}
"""
MAX_WALL_S, MIN_RATIO, MAX_PARENT_MB, MAX_WORKER_MB = 120, 1.7, 300, 400
KILLS = 20
MB = 1e6


def write_config(folder, points, requests):
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(points=points, requests=requests))
    return path


def start(*arguments):
    """Start a command in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def sweep(*arguments):
    """Run a sweep; return its wall time."""
    began = time.monotonic()
    process = start("sweep", *arguments)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return time.monotonic() - began


def shards_of(folder):
    return {path.name: path.read_bytes() for path in (Path(folder) / "shards").glob("*.parquet")}


# -- speed and memory ---------------------------------------------------------------------------


class Memory(threading.Thread):
    """Watches the resident memory of a process and its children, in MB."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.parent, self.workers = pid, [], []

    def run(self):
        while Path(f"/proc/{self.pid}").exists():
            try:
                self.parent.append(rss_mb(self.pid))
                self.workers.append(max(map(rss_mb, children(self.pid)), default=0.0))
            except (OSError, IndexError, StopIteration):
                return
            time.sleep(0.5)


def rss_mb(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1e3


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.alone
def test_a_thousand_points_in_two_minutes(tmp_path, record_property):
    config = write_config(tmp_path, 1000, 2000)
    began = time.monotonic()
    process = start("sweep", config, "--jobs", 2, "--out", tmp_path / "out")
    memory = Memory(process.pid)
    memory.start()
    _, err = process.communicate(timeout=900)
    wall_s = time.monotonic() - began
    assert process.returncode == 0, err
    assert len(load(tmp_path / "out")) == 1000
    parent, worker = max(memory.parent), max(memory.workers)
    half = len(memory.workers) // 2
    early, late = (
        sum(part) / len(part) for part in (memory.workers[4:half], memory.workers[half:])
    )
    record_property(
        "evidence",
        f"1,000-point sweep, 2,000 requests each, 2 cores: {wall_s:.0f} s wall (< {MAX_WALL_S})",
    )
    record_property(
        "evidence",
        f"its memory: parent {parent:.0f} MB (< {MAX_PARENT_MB}), worker {worker:.0f} MB "
        f"(< {MAX_WORKER_MB}), mean of the largest in the second half / first half "
        f"{late / early:.2f} (flat: < 1.1)",
    )
    assert (parent < MAX_PARENT_MB, worker < MAX_WORKER_MB, late / early < 1.1) == (True,) * 3
    assert wall_s < MAX_WALL_S


@pytest.mark.alone
def test_two_processes_against_one(tmp_path, record_property):
    config = write_config(tmp_path, 250, 2000)
    ratios = []
    for pair in range(3):
        walls_s = []
        for jobs in (1, 2):
            out = tmp_path / f"{pair}-{jobs}"
            sweep(config, "--jobs", jobs, "--out", out)
            # From the first task to the last, the start of the workers included.
            walls_s.append(json.loads((out / "timing.json").read_text())["wall_s"])
        ratios.append(walls_s[0] / walls_s[1])
        assert shards_of(tmp_path / f"{pair}-1") == shards_of(tmp_path / f"{pair}-2")
    record_property(
        "evidence",
        f"rate of a sweep on 2 processes over that on 1, 250 points: best of 3 interleaved pairs "
        f"{max(ratios):.2f} (>= {MIN_RATIO}; all: {', '.join(f'{r:.2f}' for r in ratios)})",
    )
    assert max(ratios) >= MIN_RATIO


# -- kills --------------------------------------------------------------------------------------


def test_a_kill_at_any_moment_loses_nothing(tmp_path, record_property):
    config = write_config(tmp_path, 30, 400)
    whole = tmp_path / "whole"
    wall_s = sweep(config, "--jobs", 2, "--out", whole)
    undisturbed = load(whole)
    moments = random.Random(0)
    killed = []
    for kill in range(KILLS):
        out = tmp_path / str(kill)
        process = start("sweep", config, "--jobs", 2, "--out", out)
        time.sleep(moments.uniform(0.3, 1.0) * wall_s)
        # Only the parent: its workers have to notice. They hold its stderr, which ends with them.
        process.kill()
        process.communicate(timeout=20)
        killed.append(len(shards_of(out)) if (out / "shards").exists() else 0)
        run_sweep(plan_sweep(config), out, Local(2), resume=True)
        pd.testing.assert_frame_equal(load(out), undisturbed, check_exact=True)
        assert shards_of(out) == shards_of(whole)
    in_between = sum(0 < count < 30 for count in killed)
    record_property(
        "evidence",
        f"kill -9 at {KILLS} random moments, then --resume: {KILLS} tables identical to the "
        f"undisturbed one ({in_between} kills with some of the tasks finished)",
    )


# -- clusters -----------------------------------------------------------------------------------


@pytest.fixture
def serial(tmp_path):
    """Return a sweep and its shards, made by one process."""
    swept = plan_sweep(write_config(tmp_path, 60, 1000))
    run_sweep(swept, tmp_path / "serial", Local(1))
    return swept, shards_of(tmp_path / "serial")


def test_local_processes_give_the_same_bytes(tmp_path, serial, record_property):
    swept, shards = serial
    run_sweep(swept, tmp_path / "local", Local(2))
    assert shards_of(tmp_path / "local") == shards
    record_property("evidence", f"serial and local: {len(shards)} shards byte-identical")


def disturbed(swept, folder, address, name, disturb):
    """Run a sweep on a cluster; disturb it when a quarter is done."""
    backend = open_backend(name, address, None)
    due = len(swept.tasks) // 4

    def progress(done, total):
        nonlocal due
        if due is not None and done >= due:
            due = None
            disturb()

    try:
        return run_sweep(swept, folder, backend, progress=progress)
    finally:
        backend.close()


def test_a_ray_cluster_that_loses_a_node(tmp_path, serial, record_property, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    from ray.cluster_utils import Cluster

    swept, shards = serial
    memory = {"object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
    try:
        doomed = cluster.add_node(num_cpus=1, **memory)
        cluster.wait_for_nodes()
        done = disturbed(
            swept,
            tmp_path / "ray",
            cluster.address,
            "ray",
            lambda: cluster.remove_node(doomed, allow_graceful=False),
        )
        assert len(cluster.list_all_nodes()) == 1
    finally:
        cluster.shutdown()
    assert done.failed == {}
    assert shards_of(tmp_path / "ray") == shards
    record_property(
        "evidence",
        f"Ray cluster of two nodes, one killed in mid-sweep: {len(shards)} shards, none failed, "
        "byte-identical to the serial ones",
    )


def test_a_dask_cluster_that_loses_a_worker(tmp_path, serial, record_property, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    swept, shards = serial
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c:
        doomed = c.workers[0].pid
        done = disturbed(
            swept,
            tmp_path / "dask",
            c.scheduler_address,
            "dask",
            lambda: os.kill(doomed, signal.SIGKILL),
        )
    assert done.failed == {}
    assert shards_of(tmp_path / "dask") == shards
    record_property(
        "evidence",
        f"Dask scheduler with two workers, one killed in mid-sweep: {len(shards)} shards, none "
        "failed, byte-identical to the serial ones",
    )


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_an_address_of_something_else_is_given_up(name, record_property):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[name])
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes the connection and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        config = Path(__file__).parents[2] / "examples" / "sharegpt.yaml"
        began = time.monotonic()
        process = start(
            "sweep", config, "sweep.run.seed=[1]", "--backend", name, "--address", address
        )
        _, err = process.communicate(timeout=60)
        took_s = time.monotonic() - began
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert err.startswith(f"bucketsim: error: --address {address}: no {name} cluster answers there")
    record_property("evidence", f"{name}: an address that is none, one line after {took_s:.1f} s")
    assert took_s < 15
