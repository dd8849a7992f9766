"""The `power` section: which power model counts the energy, caps and factors."""

from __future__ import annotations

from pydantic import Field

from sim.costs.power import PowerModel
from sim.study.config.section import Section


class PowerConfig(Section):
    """Energy of the GPUs and of their hosts."""

    model: PowerModel = Field(
        "logistic",
        description="power of a step: phase (constants), logistic (of the decode batch), mfu, "
        "roofline (memory and arithmetic in use)",
    )
    gpu: str | None = Field(
        None, description="catalogue name: its power data stand for every GPU's; null: each its own"
    )
    cap_w: float | None = Field(
        None, gt=0, description="power cap of a GPU, W: prompt steps take longer; null: none"
    )
    host_w_per_gpu: float | None = Field(
        None, ge=0, description="host power per GPU in use, W; null: the catalogue's"
    )
    carbon_g_per_kwh: float | None = Field(
        None, ge=0, description="carbon intensity of the electricity, g CO2e per kWh; null: unknown"
    )
    price_per_kwh: float | None = Field(
        None, ge=0, description="price of the electricity, any currency per kWh; null: unknown"
    )


NOTHING_ASKED = PowerConfig()
"""What holds without the section."""
