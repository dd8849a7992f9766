"""Decode steps as CUDA graphs, one for each of some batch sizes, captured ahead or when needed.

A batch runs in the next larger graph: its spare rows decode one token of the spare page, so the
time of a step is a staircase over the batch size, as in engines.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibrate.cache import TRASH_ROW

GRAPH_SIZES = (1, 2, 4, *range(8, 513, 8))
"""Batch sizes that are captured (vLLM's choice); a larger batch runs without a graph."""

WARM_UP_RUNS = 2

SPARE_ROW = (TRASH_ROW, 0, 1)
"""Table row, position and span of a row that fills a batch up."""


@dataclass(frozen=True)
class Captured:
    """A graph, what it reads (rows, positions, spans [3, size]) and what it writes [size]."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    tokens: Tensor


class DecodeGraphs:
    """Captured decode steps.

    Args:
        decode: runs one decode step of rows, positions and spans [3, size] -> tokens [size].
        device: the GPU.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._decode = decode
        self._device = device
        self._spare = torch.tensor(SPARE_ROW, device=device)[:, None]
        self._captured: dict[int, Captured] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def capture(self, most: int) -> None:
        """Capture the graphs of all batches of up to `most`, so that no step waits for one.

        The largest first: the others find its memory in the pool.
        """
        for size in reversed(GRAPH_SIZES[: bisect_left(GRAPH_SIZES, most) + 1]):
            self._graph(size)

    def prepare(self, inputs: Tensor) -> Captured | None:
        """Return the graph for a batch with its inputs filled in; `None`: too large for one.

        Args:
            inputs: rows, positions and spans [3, batch], on the device.
        """
        batch = inputs.shape[1]
        if batch > GRAPH_SIZES[-1]:
            return None
        captured = self._graph(GRAPH_SIZES[bisect_left(GRAPH_SIZES, batch)])
        captured.inputs[:, :batch] = inputs
        captured.inputs[:, batch:] = self._spare
        return captured

    def _graph(self, size: int) -> Captured:
        if size not in self._captured:
            self._captured[size] = self._capture(size)
        return self._captured[size]

    def _capture(self, size: int) -> Captured:
        if self._stream is None:  # one for all: every stream keeps a workspace of the GEMM library
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        inputs = self._spare.repeat(1, size)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                self._decode(inputs)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            tokens = self._decode(inputs)
        return Captured(graph, inputs, tokens)
