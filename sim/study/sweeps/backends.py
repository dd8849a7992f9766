"""Where the tasks of a sweep run: local processes, a Ray cluster or a Dask cluster.

Every backend runs `sim.study.sweeps.task.run_task` and yields outcomes as they come. A worker that
dies takes the tasks it had begun with it: locally they are run again one at a time, so that the one
that kills its worker is found; on a cluster they are run again up to `MAX_ATTEMPTS` times.
"""

from __future__ import annotations

import abc
import importlib
import os
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sim.study.sweeps.shards import Task
from sim.study.sweeps.task import Job, Outcome, run_chunk, run_task
from sim.types import BadInput, SimulationError

MAX_ATTEMPTS = 3
"""Times a task of a cluster is given to a worker that dies, and times a pool may break unused."""

CONNECT_S = 10.0
"""An address that does not answer in this time is called unreachable."""

CHUNK = 4
"""Tasks a cluster gets at once: fewer messages, and little to repeat when a node dies."""

CHUNKS_AHEAD = 3
"""Chunks that wait at a cluster for each of its processors."""

FOLLOW_S = 0.5
"""How often a worker looks whether its parent lives."""

BEGUN = "begun"
"""Folder with a file for each task under way."""


class Backend(abc.ABC):
    """Runs tasks somewhere.

    Attributes:
        workers: tasks that run at a time.
    """

    workers: int

    @abc.abstractmethod
    def outcomes(self, job: Job, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield what became of each task, in any order.

        Raises:
            SimulationError: the cluster is gone, or no worker can start.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of the workers."""


def open_backend(name: str, address: str | None, jobs: int | None) -> Backend:
    """Return a backend.

    Args:
        name: `local`, `ray` or `dask`.
        address: of the cluster; None: one on this machine.
        jobs: local processes; None: as many as there are processors.

    Raises:
        BadInput: the address does not answer, or the backend is not installed.
    """
    if name == "local":
        if address is not None:
            raise BadInput(f"--address {address}: --backend local has none; valid: ray, dask")
        return Local(jobs or processors())
    if address is not None and jobs is not None:
        raise BadInput(f"--jobs {jobs}: the cluster at {address} says how many tasks it runs")
    kinds: dict[str, type[Ray | Dask]] = {"ray": Ray, "dask": Dask}
    return kinds[name](address, jobs or processors())


def processors() -> int:
    """Return the processors of this machine that may be used."""
    return len(os.sched_getaffinity(0))


# -- local processes ----------------------------------------------------------------------------


class Local(Backend):
    """Processes of this machine, through joblib; one is this process itself."""

    def __init__(self, jobs: int) -> None:
        self.workers = jobs

    def outcomes(self, job: Job, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield what became of each task, in any order."""
        if self.workers == 1:
            yield from (run_task(job, task) for task in tasks)
            return
        begun = Path(job.folder) / BEGUN
        left = {task.name: task for task in tasks}
        idle_breaks = 0
        try:
            while left:
                _emptied(begun)
                try:
                    for outcome in self._parallel(job, list(left.values())):
                        del left[outcome.name]
                        yield outcome
                except BrokenProcessPool as error:
                    suspects = [
                        left.pop(path.name) for path in begun.iterdir() if path.name in left
                    ]
                    idle_breaks = 0 if suspects else idle_breaks + 1
                    if idle_breaks == MAX_ATTEMPTS:
                        raise SimulationError(f"workers die before they begin: {error}") from None
                    yield from (self._alone(job, task) for task in suspects)
        finally:
            shutil.rmtree(begun, ignore_errors=True)

    def _parallel(self, job: Job, tasks: Sequence[Task]) -> Iterator[Outcome]:
        from joblib import Parallel, delayed

        # Two at least: with one, joblib would run the tasks in this process.
        pool = Parallel(
            n_jobs=max(min(self.workers, len(tasks)), 2),
            batch_size=1,
            return_as="generator_unordered",
        )
        results: Generator[Outcome, None, None] = pool(
            delayed(_marked)(job, task, os.getpid()) for task in tasks
        )
        try:
            # `yield from` would close the results itself, and joblib warn.
            for outcome in results:  # noqa: UP028
                yield outcome
        finally:
            with warnings.catch_warnings():
                # About the tasks that an error or Ctrl-C leaves undone.
                warnings.simplefilter("ignore", UserWarning)
                results.close()

    def _alone(self, job: Job, task: Task) -> Outcome:
        """Run a task that was under way when a worker died."""
        try:
            (outcome,) = self._parallel(job, [task])
        except BrokenProcessPool as error:
            return Outcome(task.name, f"its worker process died: {_first_line(error)}")
        return outcome


def _marked(job: Job, task: Task, parent: int) -> Outcome:
    """Run a task in a worker of the process `parent`; while it runs, a file has its name."""
    # Ctrl-C reaches the workers, too; the parent ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _follow(parent)
    mark = Path(job.folder) / BEGUN / task.name
    mark.touch()
    outcome = run_task(job, task)
    mark.unlink(missing_ok=True)
    return outcome


@cache
def _follow(parent: int) -> None:
    """End this worker when its parent is gone: joblib's wait for work for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(FOLLOW_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


# -- clusters -----------------------------------------------------------------------------------


class WorkerLost(Exception):
    """A chunk has no result: its worker or its node is gone, or could not run it."""


@dataclass(frozen=True)
class _Chunk:
    """Tasks given to a cluster at once, and how often before."""

    tasks: tuple[Task, ...]
    attempts: int = 0


class Cluster(Backend):
    """What Ray and Dask have in common: chunks go out, outcomes come back, losses are repeated."""

    @abc.abstractmethod
    def submit(self, job: Job, tasks: tuple[Task, ...]) -> Any:
        """Start a chunk and return a handle."""

    @abc.abstractmethod
    def wait(self, handles: Sequence[Any]) -> Any:
        """Return a handle whose chunk has ended."""

    @abc.abstractmethod
    def result(self, handle: Any) -> list[Outcome]:
        """Return the outcomes of a chunk that has ended.

        Raises:
            WorkerLost: there are none.
        """

    def outcomes(self, job: Job, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield what became of each task, in any order."""
        size = max(1, min(CHUNK, len(tasks) // (self.workers * CHUNKS_AHEAD)))
        waiting = [_Chunk(tuple(tasks[at : at + size])) for at in range(0, len(tasks), size)]
        waiting.reverse()
        under_way: dict[Any, _Chunk] = {}
        while waiting or under_way:
            while waiting and len(under_way) < self.workers * CHUNKS_AHEAD:
                chunk = waiting.pop()
                under_way[self.submit(job, chunk.tasks)] = chunk
            handle = self.wait(list(under_way))
            chunk = under_way.pop(handle)
            try:
                yield from self.result(handle)
            except WorkerLost as error:
                attempts = chunk.attempts + 1
                if attempts >= MAX_ATTEMPTS:
                    yield from (Outcome(task.name, str(error)) for task in chunk.tasks)
                else:
                    # One by one, so that a task that kills its worker takes no other with it.
                    waiting += [_Chunk((task,), attempts) for task in chunk.tasks]


class Ray(Cluster):
    """A Ray cluster."""

    def __init__(self, address: str | None, jobs: int) -> None:
        self._ray = _extra("ray")
        if address is not None:
            _check_port("ray", address)
        options = {"num_cpus": jobs, "include_dashboard": False} if address is None else {}
        start = {
            "address": address or "local",
            "logging_level": "ERROR",
            "log_to_driver": False,
            "ignore_reinit_error": True,
        }
        with _silenced_stderr():
            _connected("ray", address, lambda: self._ray.init(**start, **options))
        self.workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        # Ray's own retries would hide a task that kills every worker it gets.
        self._run = self._ray.remote(max_retries=0)(run_chunk)

    def submit(self, job: Job, tasks: tuple[Task, ...]) -> Any:
        """Start a chunk and return a handle."""
        return self._run.remote(job, tasks)

    def wait(self, handles: Sequence[Any]) -> Any:
        """Return a handle whose chunk has ended."""
        (done, *_), _ = self._ray.wait(list(handles), num_returns=1)
        return done

    def result(self, handle: Any) -> list[Outcome]:
        """Return the outcomes of a chunk that has ended."""
        try:
            found: list[Outcome] = self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"its worker was lost: {_first_line(error)}") from None
        return found

    def close(self) -> None:
        """Let go of the workers."""
        self._ray.shutdown()


class Dask(Cluster):
    """A Dask cluster."""

    def __init__(self, address: str | None, jobs: int) -> None:
        self._distributed = _extra("distributed", "dask")
        self._cluster: Any = None
        if address is None:
            self._cluster = self._distributed.LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address=None
            )
        else:
            _check_port("dask", address)
        target = address or self._cluster
        self._client = _connected(
            "dask", address, lambda: self._distributed.Client(target, timeout=CONNECT_S)
        )
        threads = sum(self._client.nthreads().values())
        if not threads:
            self.close()
            raise BadInput(f"--address {address}: the Dask scheduler has no workers; start some")
        self.workers = threads

    def submit(self, job: Job, tasks: tuple[Task, ...]) -> Any:
        """Start a chunk and return a handle."""
        return self._client.submit(run_chunk, job, tasks, pure=False)

    def wait(self, handles: Sequence[Any]) -> Any:
        """Return a handle whose chunk has ended."""
        done = self._distributed.wait(list(handles), return_when="FIRST_COMPLETED").done
        return next(handle for handle in handles if handle in done)

    def result(self, handle: Any) -> list[Outcome]:
        """Return the outcomes of a chunk that has ended."""
        if handle.cancelled():
            raise SimulationError("the Dask scheduler is gone; go on with --resume")
        error = handle.exception()
        if error is not None:
            raise WorkerLost(f"its worker was lost: {_first_line(error)}")
        found: list[Outcome] = handle.result()
        return found

    def close(self) -> None:
        """Let go of the workers."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _extra(module: str, extra: str | None = None) -> Any:
    """Import the library of a backend."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = extra or module
        raise BadInput(
            f"--backend {name}: {module} is not installed; pip install 'bucketsim[{name}]'"
        ) from None


def _check_port(name: str, address: str) -> None:
    """Refuse an address at which nobody listens."""
    host, colon, port = address.rpartition("//")[2].rstrip("/").rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 2**16):
        raise BadInput(f"--address {address}: expected HOST:PORT of the {name} cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S / 2).close()
    except OSError as error:
        raise _unreachable(name, address, error.strerror or str(error)) from None


def _connected(name: str, address: str | None, connect: Any) -> Any:
    """Return what `connect` returns; give up when it takes too long."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            found.append(connect())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(None if address is None else CONNECT_S + 1)
    if found:
        return found[0]
    why = _first_line(failed[0]) if failed else f"no answer in {CONNECT_S:g} s"
    raise _unreachable(name, str(address), why)


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2: Ray's C++ part warns there every second."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _unreachable(name: str, address: str, why: str) -> BadInput:
    return BadInput(f"--address {address}: no {name} cluster answers there: {why}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
