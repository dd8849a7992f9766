"""The `engine` section: everything about the engine that no policy decides."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sim.core.routers import ROUTERS
from sim.costs.profile import HostTerm
from sim.study.config.attention import AttentionKeys
from sim.study.config.failures import FailuresConfig
from sim.study.config.section import Section
from sim.study.statistics.clock import Clock


class PredictorConfig(Section):
    """What policies that want an output length are told."""

    name: Literal["class", "oracle", "constant", "mean"] = Field(
        "class",
        description="class: right with probability accuracy, else a neighbouring class's edge",
    )
    accuracy: float = Field(0.8, ge=0, le=1, description="of class (UELLM: above 0.8)")
    tokens: int = Field(256, ge=1, description="of constant, tokens")


class PrefixRoutingConfig(Section):
    """Parameters of the router `prefix`; names and values of SGLang's router."""

    cache_threshold: float = Field(
        0.3, ge=0, le=1, description="share of the prompt that has to match before it decides"
    )
    balance_abs_threshold: int = Field(
        64, ge=0, description="so many more requests on the busiest instance: load decides"
    )
    balance_rel_threshold: float = Field(
        1.5, ge=1, description="and the ratio of busiest to idlest above which it does"
    )


class EngineConfig(AttentionKeys):
    """What running is: everything about the engine that no policy decides."""

    preset: str | None = Field(
        None, description="engine and version whose settings hold where none are given; null: none"
    )
    fuse_steps: bool = Field(True, description="one event for equal decode steps; same results")
    loop: Literal["fast", "simpy"] = Field(
        "fast", description="event loop: our tighter one, or stock SimPy; same results"
    )
    block_size: int | None = Field(
        None, ge=1, le=4096, description="tokens in a KV block; null: the profile's"
    )
    num_gpu_blocks: int | None = Field(
        None, ge=1, description="KV blocks of an instance; null: the profile's"
    )
    null_block: bool = Field(
        False, description="one KV block of an instance is never used (vLLM V1)"
    )
    max_model_len: int | None = Field(
        None, ge=1, description="longest prompt + output, tokens; null: workload's or model's"
    )
    async_scheduling: bool = Field(
        False, description="a step is formed while the one before runs (vLLM V1)"
    )
    scheduler_reserve_full_isl: bool = Field(
        False,
        description="a prompt is admitted only if all of it fits, not its first chunk (policy "
        "continuous, v1; others want room for the whole anyway)",
    )
    ttft_clock: Literal["client", "engine"] = Field(
        "client",
        description="TTFT and E2E count from the arrival, api_latency_ms included, or from when "
        "the scheduler sees the request",
    )
    api_latency_ms: float = Field(
        0.0,
        ge=0,
        description="tokenising and HTTP, ms: added to the client's TTFT and E2E, keeps no engine "
        "busy",
    )
    host_step_ms: float = Field(
        0.0, ge=0, description="host time of every step, on top of the profile's, ms"
    )
    host_seq_ms: float = Field(
        0.0, ge=0, description="host time for each sequence of a step, on top, ms"
    )
    host_prefill_ms: float = Field(
        0.0, ge=0, description="host time of a step that holds a prompt, on top, ms"
    )
    first_step_ms: float = Field(
        0.0, ge=0, description="the first step of an instance, or after a repair, lasts longer, ms"
    )
    router: str = Field("round-robin", description="which instance a request goes to")
    prefix_routing: PrefixRoutingConfig = Field(
        PrefixRoutingConfig(), description="limits of router: prefix"
    )
    decode_router: str = Field(
        "least-loaded", description="which decode instance a prefilled request goes to"
    )
    first_token: Literal["prefill", "decode"] = Field(
        "prefill",
        description="who sends the first token when roles are split: the prefill instance, or the "
        "decode instance after the transfer and one step (vLLM's P/D proxy)",
    )
    pipeline: Literal["interleaved", "sequential"] = Field(
        "interleaved",
        description="pp > 1: disjoint batches rotate through the stages, or one batch at a time",
    )
    min_step_ms: float = Field(
        0.0, ge=0, description="no step is shorter, ms (host-bound engines; HuggingFace 38.6)"
    )
    predictor: PredictorConfig = Field(PredictorConfig(), description="output length prediction")
    swap_space_gib: float = Field(
        4.0, ge=0, description="host memory for swapped KV blocks per GPU, GiB (vLLM: 4)"
    )
    swap_gb_per_s: float | None = Field(
        None, gt=0, description="KV copies GPU to host per GPU, GB/s; null: the GPU's PCIe peak"
    )
    oom_restart_s: float = Field(
        30.0, ge=0, description="an instance is away so long after running out of memory, s"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of GPU memory the engine may fill (vLLM: 0.9)"
    )
    failures: FailuresConfig | None = Field(None, description="instances fail; null: never")

    @property
    def clock(self) -> Clock:
        """By whose watch latencies count."""
        return Clock.of(self.model_dump(include={"ttft_clock", "api_latency_ms"}))

    @property
    def host(self) -> HostTerm:
        """Host time on top of the profile's."""
        return HostTerm(
            step_ms=self.host_step_ms + self.plan_ms(self.async_scheduling),
            seq_ms=self.host_seq_ms,
            prefill_step_ms=self.host_prefill_ms,
        )

    @field_validator("router", "decode_router")
    @classmethod
    def _known_router(cls, name: str) -> str:
        if name not in ROUTERS:
            raise ValueError(f"unknown router; valid: {', '.join(ROUTERS)}")
        return name

    @field_validator("decode_router")
    @classmethod
    def _decode_router_knows_load(cls, name: str) -> str:
        if name == "prefix":
            raise ValueError(
                "a KV cache that moves is copied whole: prefix is for router only; valid: "
                + ", ".join(router for router in ROUTERS if router != name)
            )
        return name
