"""What a point will take, before it is run: seconds, memory, and whether it fits at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from calibrate.points import Point
from sim.costs.catalogue import Gpu, Model
from sim.costs.model import FS_PER_MS, StepCost
from sim.costs.roofline import MS_PER_S, roofline

WARM_UP = 2
"""Runs of a point that are thrown away."""

MIN_RUNS = 10
"""Runs of a point that count, at least."""

COMPUTE_EFFICIENCY = 0.5
BANDWIDTH_EFFICIENCY = 0.5
"""Shares of the peak figures assumed until the first points tell more."""

LAYER_MS = 0.15
"""Launch and Python time of a layer assumed likewise, milliseconds."""

PREPARE_S = 0.05
"""Time beside the forward passes of a point (pages, warm state, the row on disk), seconds."""


@dataclass(frozen=True)
class Setting:
    """What points run on, as far as planning needs it.

    Attributes:
        model: architecture.
        gpu: catalogue entry whose peak figures the estimate of time starts from.
        dtype: of weights and cache.
        memory_bytes: what weights, KV cache and working memory may fill together.
        num_blocks: KV blocks.
        block_size: tokens in a KV block.
    """

    model: Model
    gpu: Gpu
    dtype: str
    memory_bytes: int
    num_blocks: int
    block_size: int

    def needed_bytes(self, point: Point) -> int:
        """Return the memory taken while a point runs: weights, KV cache, working memory."""
        cache = self.num_blocks * self.block_size * self.model.kv_bytes_per_token(self.dtype)
        kept = self.model.weight_bytes(self.dtype) + cache
        return kept + point.working_bytes(self.model, self.dtype)

    def refusal(self, point: Point) -> str | None:
        """Return why a point cannot fit, or None."""
        if point.kv_blocks(self.block_size) > self.num_blocks:
            return "more KV blocks than there are"
        if any(sum(chunk) > self.model.max_length for chunk in point.chunks) or any(
            context >= self.model.max_length for context in point.decodes
        ):
            return "longer than the model's longest sequence"
        if self.needed_bytes(point) > self.memory_bytes:
            return "more memory than there is"
        return None


class Pace:
    """Estimates the seconds of a point: peak figures first, corrected by what points took.

    The correction is the median ratio of the points of the same phase and path, else of all.
    """

    def __init__(self, setting: Setting) -> None:
        self._layers_ms = LAYER_MS * setting.model.layers
        profile = roofline(
            setting.model.name,
            setting.gpu.name,
            dtype=setting.dtype,
            compute_efficiency=COMPUTE_EFFICIENCY,
            bandwidth_efficiency=BANDWIDTH_EFFICIENCY,
        )
        self._cost = StepCost(profile, setting.model)
        self._ratios: dict[tuple[str, bool], list[float]] = {}
        self._all_ratios: list[float] = []

    def seconds(self, point: Point, runs: int = MIN_RUNS) -> float:
        """Return what measuring a point with so many runs takes."""
        ratios = self._ratios.get((point.phase, point.padded)) or self._all_ratios
        return self._planned_s(point, runs) * (median(ratios) if ratios else 1.0)

    def learn(self, point: Point, took_s: float, runs: int = MIN_RUNS) -> None:
        """Note what a point took."""
        ratio = took_s / self._planned_s(point, runs)
        self._ratios.setdefault((point.phase, point.padded), []).append(ratio)
        self._all_ratios.append(ratio)

    def _planned_s(self, point: Point, runs: int) -> float:
        if point.chunks:
            price_fs = self._cost.step(
                len(point.chunks),
                point.new_tokens,
                point.context_tokens,
                point.quad_tokens,
                point.batch,
                point.kv_tokens,
            )
        else:
            piece = self._cost.decode(point.batch)
            price_fs = piece.base_fs + piece.slope_fs * point.kv_tokens
        forward_s = (price_fs / FS_PER_MS + self._layers_ms) / MS_PER_S
        return PREPARE_S + (WARM_UP + runs) * forward_s


@dataclass(frozen=True)
class PlannedGroup:
    """Points of one phase and path in a plan.

    Attributes:
        phase: prefill, decode, mixed or host.
        padded: the padded path.
        points: how many fit.
        refused: how many do not.
        minutes: estimate for those that fit.
        most_bytes: largest estimate of memory among them.
    """

    phase: str
    padded: bool
    points: int
    refused: int
    minutes: float
    most_bytes: int


def plan(points: Sequence[Point], setting: Setting) -> list[PlannedGroup]:
    """Return what a grid will take, by phase and path."""
    pace = Pace(setting)
    groups: dict[tuple[str, bool], list[Point]] = {}
    refused: Counter[tuple[str, bool]] = Counter()
    for point in points:
        group = groups.setdefault((point.phase, point.padded), [])
        if setting.refusal(point):
            refused[point.phase, point.padded] += 1
        else:
            group.append(point)
    return [
        PlannedGroup(
            phase=key[0],
            padded=key[1],
            points=len(group),
            refused=refused[key],
            minutes=sum(map(pace.seconds, group)) / 60,
            most_bytes=max(map(setting.needed_bytes, group), default=0),
        )
        for key, group in groups.items()
    ]
