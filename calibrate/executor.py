"""A real model behind the simulator's engine: the same policy object, measured steps."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter, thread_time

import numpy as np

from calibrate.points import Point
from calibrate.runner import Chunk, Runner, Timing
from sim.core.executor import Executor
from sim.types import N, Request, to_fs
from sim.types.request import DONE, WAITING

MS_PER_S = 1e3


class DeviceExecutor(Executor):
    """Runs every step of the engine on a `Runner`: real prompts, real KV pages, sampled tokens.

    On the wall clock a step lasts from the moment the engine turns to the instance (settling the
    last step, the policy's decision, admission) until its tokens are on the host. On the device
    clock it lasts as long as the forward pass: for roles that take turns on one device.

    Attributes:
        texts: token ids of every request, prompt and what it emitted.
        steps: what each step held, and its time in the runner.
        engine_ms: milliseconds of each step beside the runner's own.

    Args:
        runner: model and KV cache; sequences are numbered by request id.
        vocab: prompt tokens are drawn below this.
        on_wall_clock: which clock.
    """

    def __init__(self, runner: Runner, vocab: int, on_wall_clock: bool) -> None:
        self.steps: list[tuple[Point, Timing]] = []
        self.engine_ms: list[float] = []
        self.texts: dict[N, list[int]] = {}
        self._runner, self._vocab = runner, vocab
        self._on_wall_clock = on_wall_clock
        # On the CPU the time in which the thread waits for a core is left out, as in `measure`.
        self._now_s = perf_counter if runner.device.is_cuda else thread_time
        self._woken_s = self._now_s()
        self._held: dict[N, Request] = {}

    def look(self) -> None:
        """Start the clock of the next step."""
        self._woken_s = self._now_s()

    def step(
        self, chunks: Sequence[tuple[Request, N]], decodes: Sequence[Request], padded: bool
    ) -> int:
        """Run one step and return its duration, femtoseconds."""
        self._release_gone(decodes)
        pieces = [self._chunk(request, tokens) for request, tokens in chunks]
        self._runner.padded = padded
        point = self._point(chunks, decodes, padded)
        began_s = self._now_s()
        sampled, timing = self._runner.step(pieces, [r.id for r in decodes])
        ran_ms = (self._now_s() - began_s) * MS_PER_S
        own = timing.without_waits(ran_ms)
        for request, tokens in chunks:
            if request.prefilled + tokens < request.target_tokens:
                del sampled[request.id]  # the middle of a prompt: nothing is emitted
        for sequence, token in sampled.items():
            self.texts[sequence].append(token)
        wall_s = self._now_s() - self._woken_s
        self.steps.append((point, own))
        self.engine_ms.append(wall_s * MS_PER_S - ran_ms)
        return max(to_fs(wall_s if self._on_wall_clock else own.device_ms / MS_PER_S), 1)

    def close(self) -> None:
        """Give all pages back."""
        for sequence in self._held:
            self._runner.release(sequence)
        self._held.clear()

    def _release_gone(self, decodes: Sequence[Request]) -> None:
        """Give back the pages of requests that have left or were evicted.

        A row of a static batch that has left may be computed on.
        """
        gone = {i for i, request in self._held.items() if request.state in (DONE, WAITING)}
        for sequence in gone.difference(request.id for request in decodes):
            self._runner.release(sequence)
            del self._held[sequence]

    def _point(
        self, chunks: Sequence[tuple[Request, N]], decodes: Sequence[Request], padded: bool
    ) -> Point:
        """Return what a step holds."""
        phase = "mixed" if chunks and decodes else "prefill" if chunks else "decode"
        new = tuple((tokens, request.prefilled) for request, tokens in chunks)
        return Point(phase, padded, new, tuple(self._runner.cached(r.id) for r in decodes))

    def _chunk(self, request: Request, tokens: N) -> Chunk:
        sequence, start = request.id, request.prefilled
        if sequence not in self.texts:
            drawn = np.random.default_rng(sequence).integers(0, self._vocab, request.input_len)
            self.texts[sequence] = drawn.tolist()
        if not start and sequence in self._held:  # evicted and back before the next step
            self._runner.release(sequence)
        self._held[sequence] = request
        return Chunk(sequence, self.texts[sequence][start : start + tokens], start)
