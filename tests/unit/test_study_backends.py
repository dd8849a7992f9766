import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from small_sweeps import shards_of, sweep_into, write_config

from sim.study.sweeps import backends
from sim.study.sweeps.backends import Cluster, Local, WorkerLost, open_backend
from sim.study.sweeps.sweep import plan_sweep, run_sweep
from sim.study.sweeps.task import run_chunk, run_task
from sim.types import BadInput

# -- local processes ----------------------------------------------------------------------------


def deadly(job, task, parent):
    """Run a task; one with seed 2 kills its worker, as the kernel does when memory is out."""
    mark = Path(job.folder) / backends.BEGUN / task.name
    mark.touch()
    if task.values["run.seed"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    outcome = run_task(job, task)
    mark.unlink()
    return outcome


@pytest.mark.slow
def test_the_task_that_kills_its_worker_fails_and_the_others_do_not(tmp_path, monkeypatch):
    config = write_config(tmp_path, "{run.seed: [0, 1, 2, 3, 4, 5]}")
    sweep_into(tmp_path / "serial", config)
    swept = plan_sweep(config)
    with monkeypatch.context() as patch:
        patch.setattr(backends, "_marked", deadly)
        done = run_sweep(swept, tmp_path / "out", Local(2))
    ((name, outcome),) = done.failed.items()
    assert swept.tasks[name].values == {"run.seed": 2}
    assert outcome.error.startswith("its worker process died")
    assert done.ran == 5
    assert shards_of(tmp_path / "out").items() < shards_of(tmp_path / "serial").items()
    assert not (tmp_path / "out" / backends.BEGUN).exists()
    done = sweep_into(tmp_path / "out", config, resume=True, jobs=2)
    assert (done.found, done.ran) == (5, 1)
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "serial")


# -- clusters -----------------------------------------------------------------------------------


class Pretended(Cluster):
    """A cluster of two processors, in this process, that loses what it is told to lose."""

    def __init__(self, lost=()):
        self.workers = 2
        self.lost = lost
        self.submitted = Counter()
        self.chunks = []
        self.under_way = 0

    def submit(self, job, tasks):
        self.under_way += 1
        assert self.under_way <= self.workers * backends.CHUNKS_AHEAD
        for task in tasks:
            self.submitted[task.values["run.seed"]] += 1
        self.chunks.append([job, tasks])
        return len(self.chunks) - 1

    def wait(self, handles):
        return max(handles)

    def result(self, handle):
        self.under_way -= 1
        job, tasks = self.chunks[handle]
        if any(self.submitted[seed] <= self.lost.get(seed, 0) for seed in self.seeds(tasks)):
            raise WorkerLost("its worker was lost")
        return run_chunk(job, tasks)

    def seeds(self, tasks):
        return [task.values["run.seed"] for task in tasks]


SEEDS = "{run.seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}"


def test_what_a_lost_worker_had_is_run_again(tmp_path):
    config = write_config(tmp_path, SEEDS, requests=2)
    cluster = Pretended({3: 1, 8: 2})
    done = run_sweep(plan_sweep(config), tmp_path / "out", cluster)
    assert (done.ran, done.failed) == (14, {})
    assert cluster.submitted[8] == 3
    sweep_into(tmp_path / "serial", config)
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "serial")


def test_a_task_that_always_loses_its_worker_fails_alone(tmp_path):
    swept = plan_sweep(write_config(tmp_path, SEEDS, requests=2))
    cluster = Pretended({3: 99})
    done = run_sweep(swept, tmp_path / "out", cluster)
    assert [swept.tasks[name].values["run.seed"] for name in done.failed] == [3]
    assert done.ran == 13
    assert cluster.submitted[3] == backends.MAX_ATTEMPTS


# -- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_an_address_where_nobody_listens_is_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", object())
    monkeypatch.setitem(sys.modules, "distributed", object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(BadInput, match=f"--address {address}: no {name} cluster answers there"):
            open_backend(name, address, None)
    assert time.monotonic() - began < 15


def test_who_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(backends, "CONNECT_S", -0.9)
    with pytest.raises(BadInput, match="no ray cluster answers there: no answer in"):
        backends._connected("ray", "h:1", lambda: time.sleep(5))


@pytest.mark.parametrize(
    ("name", "address", "jobs", "message"),
    [
        ("ray", "nonsense", None, "--address nonsense: expected HOST:PORT of the ray cluster"),
        ("dask", "tcp://host:99999", None, "expected HOST:PORT of the dask cluster"),
        ("local", "h:1", None, "--address h:1: --backend local has none; valid: ray, dask"),
        ("ray", "h:1", 4, "--jobs 4: the cluster at h:1 says how many"),
    ],
)
def test_addresses_that_cannot_be(name, address, jobs, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", object())
    monkeypatch.setitem(sys.modules, "distributed", object())
    with pytest.raises(BadInput) as error:
        open_backend(name, address, jobs)
    assert message in str(error.value)


def test_a_backend_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BadInput, match=r"pip install 'bucketsim\[dask\]'"):
        open_backend("dask", "127.0.0.1:1", None)
