"""What a GPU draws: `catalogue/power.yaml` and four models of power in a step.

    phase      constants: a prompt step, a decode step                       (Splitwise)
    logistic   decode of a batch b: min + (max - min) / (1 + exp(-steepness*(log2 b - middle)));
               prompts a constant                                            (the default)
    mfu        idle + (max - idle) * min(1, mfu/0.45)^0.7                    (arXiv:2507.11417)
    roofline   idle + memory * u + compute * min(1, mfu/0.45)^0.7, at most the limit; u: bytes moved
               over what the memory could move in that time

In `phase` and `logistic` a step of decodes beside c chunk tokens (padding included) draws
w*prompt + (1-w)*decode with w = min(1, c/512). Every GPU of an instance draws the same. A power cap
bounds all of it.

Quality: absolute power of decode is known to +-30 % at best, and prompts below 512 tokens, mixed
steps, links and processors under load are not known at all (spec/neighbours.md section 6). Compare
policies under `phase`, `logistic` and `roofline`: a conclusion that flips is not one.

Reference: Patel et al., "Splitwise", ISCA 2024, arXiv:2311.18677; Ozcan et al., arXiv:2507.11417.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sim.costs.catalogue import read_entries
from sim.types import BadInput

Floats = NDArray[np.float64]
PowerModel = Literal["phase", "logistic", "mfu", "roofline"]

FULL_CHUNK_TOKENS = 512
"""Chunk tokens from which a mixed step draws what a prompt does (assumption, spec section 6)."""
FULL_MFU = 0.45
"""Share of the peak FLOPs at which the arithmetic units draw all they can (arXiv:2507.11417)."""
MFU_EXPONENT = 0.7


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PhasePower(_Entry):
    """Model `phase`."""

    prompt_w: float = Field(gt=0, description="in a prompt step")
    token_w: float = Field(gt=0, description="in a decode step")


class LogisticPower(_Entry):
    """Model `logistic`; `min_w` is a busy floor (weights streaming), not what an idle GPU draws."""

    prompt_w: float = Field(gt=0, description="in a prompt step")
    min_w: float = Field(gt=0, description="decode of small batches")
    max_w: float = Field(gt=0, description="decode of large batches")
    steepness: float = Field(gt=0, description="per doubling of the batch")
    middle: float = Field(description="log2 of the batch half way between")

    def decode_w(self, batch: Floats) -> Floats:
        """Return the power of decode steps; of no decodes 0."""
        some = np.maximum(batch, 1.0)
        rise = 1.0 + np.exp(-self.steepness * (np.log2(some) - self.middle))
        return np.where(batch > 0, self.min_w + (self.max_w - self.min_w) / rise, 0.0)


class MfuPower(_Entry):
    """Model `mfu`."""

    idle_w: float = Field(gt=0, description="of a step that computes nothing")
    max_w: float = Field(gt=0, description="from FULL_MFU on")


class RooflinePower(_Entry):
    """Model `roofline`, on top of the idle power."""

    memory_w: float = Field(gt=0, description="with the memory busy all the time")
    compute_w: float = Field(gt=0, description="from FULL_MFU on")


class NodePower(_Entry):
    """The machine around the GPUs."""

    gpus: int = Field(gt=0, description="GPUs of the machine")
    host_w: float = Field(ge=0, description="all but the GPUs, whatever they do")
    rating_w: float = Field(gt=0, description="provisioned for the whole machine")
    rating_w_per_cap_w: float = Field(ge=0, description="less for each watt a GPU is capped by")


class GpuPower(_Entry):
    """Power data of a GPU.

    Attributes:
        name: catalogue name.
        tdp_w: limit the GPU comes with.
        idle_w: with nothing to run.
        quality: how far the numbers can be trusted.
        source: where they come from.
    """

    name: str
    tdp_w: float = Field(gt=0)
    idle_w: float = Field(gt=0)
    phase: PhasePower
    logistic: LogisticPower
    mfu: MfuPower
    roofline: RooflinePower
    node: NodePower
    quality: str
    source: str

    @property
    def host_w_per_gpu(self) -> float:
        """Share of a GPU in what its machine draws besides GPUs."""
        return self.node.host_w / self.node.gpus

    def rating_w_per_gpu(self, cap_w: float | None = None) -> float:
        """Return a GPU's share of what its machine is rated at, with a power cap on each GPU."""
        saved = 0.0 if cap_w is None else max(self.tdp_w - cap_w, 0.0)
        return (self.node.rating_w - saved * self.node.rating_w_per_cap_w) / self.node.gpus

    def capped(self, cap_w: float | None) -> GpuPower:
        """Return the data with every power bounded by a cap."""
        if cap_w is None or cap_w >= self.tdp_w:
            return self

        def low(value: float) -> float:
            return min(value, cap_w)

        phase, logistic, mfu = self.phase, self.logistic, self.mfu
        return self.model_copy(
            update={
                "tdp_w": cap_w,
                "phase": PhasePower(prompt_w=low(phase.prompt_w), token_w=low(phase.token_w)),
                "logistic": logistic.model_copy(
                    update={k: low(getattr(logistic, k)) for k in ("prompt_w", "min_w", "max_w")}
                ),
                "mfu": MfuPower(idle_w=low(mfu.idle_w), max_w=low(mfu.max_w)),
            }
        )

    def by_batch(self, model: PowerModel, chunk_tokens: Floats, batch: Floats) -> Floats:
        """Return the watts of steps by `phase` or `logistic`.

        Args:
            model: which of the two.
            chunk_tokens: prompt tokens, padding included, shape (steps,).
            batch: decodes, shape (steps,).
        """
        if model == "phase":
            prompt_w, decode_w = self.phase.prompt_w, np.where(batch > 0, self.phase.token_w, 0.0)
        else:
            prompt_w, decode_w = self.logistic.prompt_w, self.logistic.decode_w(batch)
        share = np.minimum(chunk_tokens / FULL_CHUNK_TOKENS, 1.0)
        share = np.where((chunk_tokens > 0) & (batch == 0), 1.0, share)
        watts: Floats = share * prompt_w + (1.0 - share) * decode_w
        return watts

    def by_work(self, model: PowerModel, mfu: Floats, memory_use: Floats) -> Floats:
        """Return the watts of steps by `mfu` or `roofline`.

        Args:
            model: which of the two.
            mfu: FLOPs over what the peak would do in that time, shape (steps,).
            memory_use: bytes over what the memory could move in that time, shape (steps,).
        """
        busy = np.minimum(mfu / FULL_MFU, 1.0) ** MFU_EXPONENT
        if model == "mfu":
            watts: Floats = self.mfu.idle_w + (self.mfu.max_w - self.mfu.idle_w) * busy
            return watts
        roofline = self.roofline
        watts = self.idle_w + roofline.memory_w * memory_use + roofline.compute_w * busy
        return np.minimum(watts, self.tdp_w)

    def demand_w(self, chunk_tokens: int, batch: int) -> float:
        """Return what one step would draw by `logistic`."""
        arrays = np.array([chunk_tokens], np.float64), np.array([batch], np.float64)
        return float(self.by_batch("logistic", *arrays)[0])


def power_of(gpu: str) -> GpuPower:
    """Return the power data of a GPU; `BadInput` names it and those that have some."""
    entries = powers()
    if gpu not in entries:
        raise BadInput(f"no power data for GPU '{gpu}'; there are for: {', '.join(entries)}")
    return entries[gpu]


@cache
def powers() -> dict[str, GpuPower]:
    """Return the power data of the catalogue by GPU."""
    entries: dict[str, dict[str, Any]] = read_entries("power")
    return {name: GpuPower(name=name, **entry) for name, entry in entries.items()}


def check_cap(power: GpuPower, cap_w: float) -> None:
    """Raise `BadInput` for a cap that no GPU could keep."""
    if not math.isfinite(cap_w) or cap_w <= power.idle_w:
        raise BadInput(
            f"{cap_w:g} W is no cap for {power.name}: idle it draws {power.idle_w:g} W; "
            f"valid: above that, up to {power.tdp_w:g} W"
        )
