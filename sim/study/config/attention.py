"""Keys of the `engine` section about attention: padding, shared blocks, how it is split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sim.study.config.section import Section


class AttentionKeys(Section):
    """What attention reads, and how a GPU's thread blocks divide it; the base of `EngineConfig`."""

    padding: Literal["none", "batch", "policy"] = Field(
        "policy", description="prompt batches: never padded, always, or as the policy says"
    )
    attention: Literal["fitted", "ragged", "balanced"] = Field(
        "fitted",
        description="how attention is split among a GPU's thread blocks: evenly, as the profile "
        "has it; ragged: in whole rows, the busiest block is waited for; balanced: evenly, planned "
        "on the host before every step (FlashInfer)",
    )
    attention_ctas_per_sm: int = Field(
        1, ge=1, le=32, description="of attention: ragged, thread blocks that an SM runs at once"
    )
    attention_plan_ms: float = Field(
        0.1,
        ge=0,
        description="of attention: balanced, host time of a step's plan, ms (0.05-0.2; hidden by "
        "async_scheduling)",
    )
    enable_prefix_caching: bool = Field(
        False,
        description="requests that begin alike share KV blocks, and freed blocks are found again "
        "(vLLM V1: on)",
    )
    cascade_attention: bool = Field(
        False,
        description="requests that decode together read KV blocks they share once "
        "(enable_prefix_caching)",
    )

    def plan_ms(self, ahead: bool) -> float:
        """Return the host time of planning a step's attention; none if it is formed ahead."""
        return self.attention_plan_ms if self.attention == "balanced" and not ahead else 0.0

    @model_validator(mode="after")
    def _caching_needs_ragged_prompts(self) -> AttentionKeys:
        if self.enable_prefix_caching and self.padding == "batch":
            raise ValueError(
                "enable_prefix_caching: true and padding: batch exclude each other: a padded "
                "prompt is computed whole; valid padding: none, policy"
            )
        return self

    @model_validator(mode="after")
    def _cascades_are_shared_and_split(self) -> AttentionKeys:
        if self.cascade_attention and not self.enable_prefix_caching:
            raise ValueError(
                "cascade_attention: true reads blocks that are shared: it needs "
                "enable_prefix_caching: true, got false"
            )
        if self.cascade_attention and self.attention == "ragged":
            raise ValueError(
                "cascade_attention: true and attention: ragged exclude each other: a shared prefix "
                "is split from its rows; valid attention: fitted, balanced"
            )
        return self
