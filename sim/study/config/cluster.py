"""The `cluster` section: GPUs, model, step times, layout, links."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sim.study.config.section import Section

MOST_GPUS = 100_000


class PoolConfig(Section):
    """Instances of one role."""

    role: Literal["mixed", "prefill", "decode"] = Field("mixed", description="what they do")
    instances: int = Field(ge=1, le=MOST_GPUS, description="how many")
    tp: int = Field(1, ge=1, description="tensor-parallel degree, GPUs")
    pp: int = Field(1, ge=1, description="pipeline stages, GPUs")
    gpu: str | None = Field(None, description="catalogue name; null: the cluster's")
    profile: str | None = Field(
        None, min_length=1, description="step times, as cluster.profile; null: the cluster's"
    )


class LinkConfig(Section):
    """How KV caches move from prefill to decode instances."""

    name: Literal["nvlink", "pcie", "ethernet"] = Field(
        "nvlink", description="which bandwidth: the GPU's NVLink or PCIe peak, 100 Gbit/s Ethernet"
    )
    gb_per_s: float | None = Field(
        None, gt=0, description="bandwidth of a link, one way, GB/s; null: the named link's"
    )
    latency_ms: float = Field(0.0, ge=0, description="time before the first byte, ms")
    shared: bool = Field(
        False, description="all transfers share one link, instead of one per pair of instances"
    )
    overlap: float = Field(
        0.0, ge=0, le=1, description="share of a transfer hidden behind the prefill (Splitwise 0.9)"
    )


class ClusterConfig(Section):
    """What there is to serve with."""

    gpu: str = Field(description="catalogue name of the GPU")
    count: int = Field(ge=1, le=MOST_GPUS, description="GPUs")
    model: str = Field(description="catalogue name of the model")
    profile: str = Field(
        "auto",
        min_length=1,
        description="step times: auto, roofline (peak figures, not measured), an engine, "
        "a profile's name or the path of a YAML",
    )
    pools: tuple[PoolConfig, ...] | None = Field(
        None, min_length=1, description="layout; null: the policy's own"
    )
    link: LinkConfig = Field(LinkConfig(), description="between prefill and decode instances")
