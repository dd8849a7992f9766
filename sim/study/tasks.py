"""Many calls of a function, in this process or in several; the results come in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def calls(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[T]:
    """Yield what `function` returns for the arguments of each task, in their order."""
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield function(*task)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=min(jobs, len(tasks)), return_as="generator")
    yield from parallel(delayed(function)(*task) for task in tasks)


class Told:
    """Tells somebody how many results there are, of how many in all."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def __call__(self, results: Iterable[T]) -> Iterator[T]:
        """Yield the results, counting them."""
        for result in results:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, max(self.total, self.done))
            yield result
