"""The `workload` section of an experiment."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from workloads.arrivals import AllAtOnce, Arrivals, Closed
from workloads.base import MAX_TOKENS, Config, Field
from workloads.lengths.parametric import PARAMETRIC, Parametric
from workloads.prefix_blocks import SharedPrefix

MIXED = ("mixed", "mixture")


class WorkloadConfig(Config):
    """Where requests come from and when."""

    source: str = Field(
        "mixed", min_length=1, description="built-in name (`source_names()`) or path of a trace"
    )
    mixture: dict[str, float] | None = Field(
        None, description="for source mixed: source -> weight > 0 (a file is drawn from at random)"
    )
    input_len: Parametric | None = Field(
        None, description="prompts of a parametric source: a number or {dist, …} [tokens]"
    )
    output_len: Parametric | None = Field(
        None, description="outputs of a parametric source: a number or {dist, …} [tokens]"
    )
    num_requests: int | None = Field(
        None, ge=1, le=100_000_000, description="requests; default for a trace file: all of it"
    )
    duration_s: float | None = Field(
        None, gt=0, description="instead of num_requests: all arrivals before this [s]"
    )
    max_model_len: int | None = Field(
        None, ge=2, le=MAX_TOKENS, description="longest prompt + output [tokens]"
    )
    overlong: Literal["truncate", "drop"] = Field(
        "truncate", description="over max_model_len: cut the prompt, or drop the request"
    )
    max_output_len: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="longer outputs are cut to this [tokens]"
    )
    arrivals: Arrivals | None = Field(
        None, description="arrival process; default for a trace file: its own times"
    )
    format: str = Field("auto", description="format of a trace file (`format_names()`)")
    tokenizer: str | None = Field(
        None, description="tokenizer.json or Hugging Face name, for traces that hold text"
    )
    max_rows: int | None = Field(
        None, ge=1, description="refuse longer trace files [rows]; default 10 million"
    )
    prefix_blocks: str | None = Field(
        None, min_length=1, description="file with the shared prompt blocks of a trace's requests"
    )
    hash_block_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="tokens of a block that has an id; null: the file's (Mooncake 512) or 16",
    )
    shared_prefix: SharedPrefix | None = Field(
        None, description="prefixes put before the prompts of a source that has none"
    )
    priorities: dict[int, float] | None = Field(
        None, description="priority (smaller is more urgent) -> share of requests"
    )
    tasks: dict[str, float] | None = Field(
        None, description="task (online, offline) -> share of requests"
    )

    @model_validator(mode="before")
    @classmethod
    def _lengths_in_short(cls, data: Any) -> Any:
        """Accept a number for a fixed length, and the source's name as the default `dist`."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        source = data.get("source")
        for key in ("input_len", "output_len"):
            side = data.get(key)
            if isinstance(side, int):
                data[key] = {"dist": "fixed", "tokens": side}
            elif isinstance(side, dict) and "dist" not in side and source in PARAMETRIC:
                data[key] = {"dist": source, **side}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> WorkloadConfig:
        if self.num_requests is not None and self.duration_s is not None:
            raise ValueError("give num_requests or duration_s, not both")
        if self.mixture is not None and self.source not in MIXED:
            raise ValueError(f"mixture needs source: mixed, not {self.source!r}")
        for key in ("mixture", "priorities", "tasks"):
            weights = getattr(self, key)
            if weights is not None and not (weights and min(weights.values()) > 0):
                raise ValueError(f"{key}: needs weights above 0")
        if self.duration_s is not None and isinstance(self.arrivals, AllAtOnce | Closed):
            raise ValueError(f"arrivals {self.arrivals.process} needs num_requests, not duration_s")
        return self
