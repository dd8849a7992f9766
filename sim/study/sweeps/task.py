"""What a worker does with a task of a sweep; the same code under every backend."""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sim import __version__
from sim.study.config import Experiment, resolve
from sim.study.notices import UNSETTLED
from sim.study.output import peak_rss_bytes
from sim.study.policy_facts import own_file
from sim.study.provenance import PACKAGES, engine_hash
from sim.study.run import replicate
from sim.study.sweeps.shards import Task, Told, shard_bytes, write_shard
from sim.types import BadInput, SimulationError

ENGINE = "engine:"
"""In place of a file: the code and the tables that decide the result of a run."""

OWN = "policy:"
"""Before the name of a policy from outside, in place of its file, which may lie elsewhere."""

TOKEN = ".running"
"""File of the sweep's folder by which a worker finds out whether it sees the same folder."""


@dataclass(frozen=True)
class Job:
    """What the tasks of a sweep share.

    Attributes:
        folder: of the sweep, absolute.
        root: where relative paths in the config start.
        source: the config's file, for error messages.
        token: content of the token file.
        packages: versions that have to be equal on every node.
    """

    folder: str
    root: str
    source: str
    token: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        name: of the task.
        error: why it failed, one line; None: it did not.
        refused: whether it failed for something that the user gave.
        trace: traceback, of an error nobody foresaw.
        content: the shard, if the worker does not see the sweep's folder.
        unwritten: why the shard could not be written.
        wall_s: time it took, seconds.
        pid: of the worker.
        peak_rss_bytes: largest memory the worker has held so far.
    """

    name: str
    error: str | None = None
    refused: bool = False
    trace: str | None = None
    content: bytes | None = None
    unwritten: str | None = None
    wall_s: float = 0.0
    pid: int = 0
    peak_rss_bytes: int = 0


@cache
def packages() -> dict[str, str]:
    """Return the versions that could change a result."""
    return {"bucketsim": __version__} | {name: version(name) for name in PACKAGES}


def run_task(job: Job, task: Task) -> Outcome:
    """Run a task and write its shard; errors are part of the outcome."""
    began = time.perf_counter()
    content = unwritten = error = trace = None
    refused = False
    try:
        _check_node(job, task)
        content = shard_of(job, task)
    except (BadInput, SimulationError) as known:
        error, refused = str(known), isinstance(known, BadInput)
    except Exception as unknown:
        error = f"{type(unknown).__name__}: {unknown}"
        trace = traceback.format_exc()
    if content is not None and _sees(job):
        try:
            write_shard(Path(job.folder), task.name, content)
        except BadInput as problem:
            unwritten = str(problem)
        content = None
    wall_s = time.perf_counter() - began
    return Outcome(
        task.name, error, refused, trace, content, unwritten, wall_s, os.getpid(), peak_rss_bytes()
    )


def run_chunk(job: Job, tasks: tuple[Task, ...]) -> list[Outcome]:
    """Run several tasks, one after the other."""
    return [run_task(job, task) for task in tasks]


def shard_of(job: Job, task: Task) -> bytes:
    """Simulate a task and return its shard."""
    experiment = experiment_of(job, task)
    replication = replicate(experiment, experiment.policies[0], task.replication)
    told = dict(replication.tally)
    if not replication.settled:
        told[UNSETTLED] = 1
    return shard_bytes(task, replication.summary, Told(told, replication.fingerprint))


def experiment_of(job: Job, task: Task) -> Experiment:
    """Return what a task simulates."""
    return resolve(json.loads(task.config), job.source, swept=task.values)


def file_hash(path: str) -> str:
    """Return the SHA-256 of a file, of that of a policy (`policy:NAME`), or of the engine.

    Raises:
        BadInput: it cannot be read.
    """
    if path == ENGINE:
        return engine_hash()
    if path.startswith(OWN):
        path = own_file(path.removeprefix(OWN)) or path
    try:
        stat = os.stat(path)
        return _hash(os.path.abspath(path), (stat.st_mtime_ns, stat.st_size))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


@cache
def _hash(path: str, _state: tuple[int, int]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_node(job: Job, task: Task) -> None:
    """Refuse to run where the result could be another one."""
    here = packages()
    if here != job.packages:
        name = next(n for n in job.packages if here.get(n) != job.packages[n])
        raise BadInput(
            f"node {os.uname().nodename}: {name} {here.get(name)}, the sweep runs with "
            f"{job.packages[name]}; install equal versions on all nodes"
        )
    if task.files and os.getcwd() != job.root and os.path.isdir(job.root):
        os.chdir(job.root)
    for path, digest in task.files.items():
        if file_hash(path) != digest:
            raise BadInput(f"node {os.uname().nodename}: {path} has another content here")


def _sees(job: Job) -> bool:
    try:
        return (Path(job.folder) / TOKEN).read_text() == job.token
    except OSError:
        return False
