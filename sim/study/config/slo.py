"""The `slo` section: bounds that requests have to meet."""

from __future__ import annotations

from pydantic import Field

from sim.study.config.section import Section


class SloBounds(Section):
    """Bounds a request has to meet; null: no bound."""

    ttft_ms: float | None = Field(None, gt=0, description="arrival to first token, ms")
    tpot_ms: float | None = Field(None, gt=0, description="mean time per further token, ms")
    e2e_ms: float | None = Field(None, gt=0, description="arrival to last token, ms")


class SloConfig(SloBounds):
    """Service-level objectives."""

    scale: float = Field(1.0, gt=0, le=1e6, description="factor on every bound")
    by: dict[str, SloBounds] = Field(
        {}, description="other bounds for a class: component of the mixture -> bounds"
    )
    abort_after_s: float | None = Field(
        None, gt=0, description="the client gives up so long after arrival, s; null: never"
    )

    def bounds(self, source: str | None = None) -> SloBounds:
        """Return the scaled bounds of a class (None: of all others)."""
        chosen = self if source is None else self.by[source]
        scaled = {
            name: None if value is None else value * self.scale
            for name in SloBounds.model_fields
            for value in (getattr(chosen, name),)
        }
        return SloBounds(**scaled)
