"""GPUs under a power cap: slower prompts."""

from __future__ import annotations

from sim.costs.power import FULL_CHUNK_TOKENS, GpuPower
from sim.types import CostModel, DecodePiece, DecodeTerms, N

MW_PER_W = 1000


class CappedCost(CostModel):
    """Step times of GPUs whose power is capped.

    Equation (assumption, from Splitwise's study of caps): decode steps last as long as without a
    cap, because memory limits them; a step that holds prompt tokens and would draw P > cap lasts
    P/cap as long, host time included. P is that of the model `logistic` whatever model counts the
    energy, so that the schedule does not depend on the accounting. Milliwatts and femtoseconds are
    integers, and decode pieces are those of the inner model: fused spans stay exact.

    Fitted range and error are those of the inner model; the slow-down is not fitted.

    Args:
        cost: step times without a cap.
        power: of the GPUs, without a cap.
        cap_w: of each GPU, watts.
    """

    def __init__(self, cost: CostModel, power: GpuPower, cap_w: float) -> None:
        self.cost = cost
        self.power = power
        self.cap_mw = round(cap_w * MW_PER_W)
        self._demand_mw: dict[tuple[N, N], int] = {}

    def decode(self, batch: N) -> DecodePiece:
        """Return the first piece of a batch: that of the inner model."""
        return self.cost.decode(batch)

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step, in femtoseconds (arguments: `CostModel.step`)."""
        duration_fs = self.cost.step(chunks, new, context, quad, batch, kv)
        return self._slowed(duration_fs, new, batch) if chunks else duration_fs

    def decode_terms(self, batch: N) -> DecodeTerms:
        """Return what the inner model's decode adds up."""
        return self.cost.decode_terms(batch)

    def verify(self, batch: N, drafts: N) -> DecodePiece:
        """Return the first piece of a batch that verifies drafts: that of the inner model."""
        return self.cost.verify(batch, drafts)

    def verify_step(
        self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N, drafts: N
    ) -> int:
        """Price a step with prompt chunks beside requests that verify drafts, in femtoseconds."""
        duration_fs = self.cost.verify_step(chunks, new, context, quad, batch, kv, drafts)
        return self._slowed(duration_fs, new, batch) if chunks else duration_fs

    def extrapolates(self, new: N, batch: N) -> bool:
        """Whether the inner model leaves its fitted range."""
        return self.cost.extrapolates(new, batch)

    def _slowed(self, duration_fs: int, new: N, batch: N) -> int:
        """Return what a step of `new` prompt tokens and `batch` decodes lasts under the cap."""
        key = (min(new, FULL_CHUNK_TOKENS), batch)
        demand_mw = self._demand_mw.get(key)
        if demand_mw is None:
            demand_mw = self._demand_mw[key] = round(self.power.demand_w(*key) * MW_PER_W)
        if demand_mw <= self.cap_mw:
            return duration_fs
        return duration_fs * demand_mw // self.cap_mw
