"""Our runs of the requests that other simulators ran, their steps one by one, and how both differ.

Where the others differ from our engine and policies on purpose (effects: docs/agreement.md):

- Vidur divides by all output tokens for TPOT, we by one less: not compared.
- Vidur counts the token under way as cached in decode attention: in `VidurCost`.
- Vidur evicts for a decode that finds no block free, also when it needs none, and counts a step's
  blocks as taken when prompts are admitted: memory never runs out in its two runs (`cases.Spare`).
- simdistserve runs `output_len` decode steps after a prefill: one more output token a request here.
- simdistserve's KV takes no time to move and decode memory has no end: `link_overlap` 1, many
  blocks.
- simdistserve's decode batch goes to the end of the queue when more than 50,000 tokens want to
  decode; 39,699 is the most here, so there is no switch for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from lookup import KV_GRAIN, LAYERS, SEVERAL, Key, SimdistserveCost, VidurCost, up
from numpy.typing import NDArray
from peers import requests, table

from policies.continuous import Continuous, ContinuousConfig
from policies.distserve import Distserve, DistserveConfig
from policies.sarathi import Sarathi, SarathiConfig
from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.types import Mixed, Plan, Policy, View

VIDUR_BLOCKS, VIDUR_WATERMARK, VIDUR_SEQS = 27904, 0.01, 128
VIDUR_BATCH_TOKENS, VIDUR_CHUNK = 4096, 512
PREFILL_TOKENS, DECODE_TOKENS = 66144, 50000
"""Caps of the simdistserve run: tokens in a prefill, and in a decode batch."""
UNLIMITED = 10**7
VIDUR_POLICIES = ("vllm", "sarathi")
MS_PER_S = 1e3
Column = NDArray[Any]


class Shown(Sarathi):
    """Sarathi that shows the chunks of its plans to the price list."""

    cost: VidurCost

    def plan(self, view: View) -> Plan | None:
        """Decide the next step."""
        plan = super().plan(view)
        if isinstance(plan, Mixed):
            self.cost.chunks = plan.chunks
        return plan


def vidur(policy: str, cost: VidurCost, fuse: bool = True, **options: Any) -> RunRecord:
    """Run `vllm` or `sarathi` with Vidur's parameters and prices; `options` change the policy's."""
    ours: Policy
    if policy == "vllm":
        config: dict[str, Any] = {
            "scheduler": "v0",
            "token_count": "padded",
            "max_num_batched_tokens": VIDUR_BATCH_TOKENS,
        }
        common = {"max_num_seqs": VIDUR_SEQS, "watermark": VIDUR_WATERMARK}
        ours = Continuous(ContinuousConfig(**{**config, **common, **options}))
    else:
        config = {"max_num_batched_tokens": VIDUR_CHUNK}
        common = {"max_num_seqs": VIDUR_SEQS, "watermark": VIDUR_WATERMARK}
        ours = Shown(SarathiConfig(**{**config, **common, **options}))
        ours.cost = cost
    spec = InstanceSpec(cost, VIDUR_BLOCKS, 16)
    return simulate(requests(), ours, [spec], Settings(fuse_steps=fuse))


def simdistserve(fuse: bool = True, more_tokens: int = 1, latency_s: float = 0.0) -> RunRecord:
    """Run `distserve` with simdistserve's caps and prices, and a transfer that takes no time."""
    config = DistserveConfig(
        max_num_batched_tokens=PREFILL_TOKENS,
        max_prefill_seqs=UNLIMITED,
        max_num_seqs=UNLIMITED,
        ready_threshold=1.0,
        padded=False,
    )
    cost = SimdistserveCost()
    specs = [InstanceSpec(cost, UNLIMITED, 16, role=role) for role in ("prefill", "decode")]
    settings = Settings(fuse_steps=fuse, link_overlap=1.0, link_latency_s=latency_s)
    return simulate(requests(more_tokens), Distserve(config), specs, settings)


def single_steps(record: RunRecord) -> pd.DataFrame:
    """Return one row a step: what each span consists of. Times in ms."""
    spans = pd.DataFrame(record.steps)
    steps = spans.loc[spans.index.repeat(spans.n_steps)]
    at = steps.groupby(level=0).cumcount().to_numpy()
    past = at * steps.first_fs.to_numpy() + steps.increment_fs.to_numpy() * (at * (at - 1) // 2)
    steps = steps.reset_index(drop=True)
    steps["start_ms"] = steps.start_s * MS_PER_S + past / 1e12
    steps["duration_ms"] = (steps.first_fs + at * steps.increment_fs) / 1e12
    steps["kv_tokens"] += at * steps.decode_requests
    return steps


# -- composition ----------------------------------------------------------------------------------


def vidur_batches(record: RunRecord, cost: VidurCost) -> dict[str, Column]:
    """Return what every step of a run holds, in Vidur's columns."""
    steps = single_steps(record)
    chunked = steps.prefill_requests.to_numpy() > 0
    cached, root, kv = (np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64), None)
    kv = steps.kv_tokens.to_numpy().copy()
    cached[chunked], root[chunked], kv[chunked] = np.array(cost.priced).T
    decodes = steps.decode_requests.to_numpy()
    return {
        "n_prefill_reqs": steps.prefill_requests.to_numpy(),
        "prefill_tokens": steps.prefill_tokens.to_numpy(),
        "prefill_kv_rounded_sum": cached,
        "prefill_rss_chunk": root,
        "n_decode_reqs": decodes,
        "decode_kv_sum": kv + decodes,
        "start_ms": steps.start_ms.to_numpy(),
        "duration_ms": steps.duration_ms.to_numpy(),
    }


VIDUR_COLUMNS = (
    "n_prefill_reqs",
    "prefill_tokens",
    "prefill_kv_rounded_sum",
    "prefill_rss_chunk",
    "n_decode_reqs",
    "decode_kv_sum",
)


def equal_batches(ours: dict[str, Column], theirs: pd.DataFrame) -> int:
    """Return how many batches are equal before the first that is not."""
    count = min(len(theirs), len(ours["n_decode_reqs"]))
    same = np.ones(count, bool)
    for name in VIDUR_COLUMNS:
        same &= ours[name][:count] == theirs[name].to_numpy()[:count]
    return count if same.all() else int(np.argmin(same))


def simdistserve_batches(record: RunRecord, worker: int) -> dict[str, Column]:
    """Return what every step of one instance holds, in simdistserve's columns."""
    steps = single_steps(record)
    steps = steps[steps.instance == worker]
    return {
        "prefill_bs": steps.prefill_requests.to_numpy(),
        "prefill_tokens": steps.prefill_tokens.to_numpy(),
        "decode_bs": steps.decode_requests.to_numpy(),
        "decode_ctx_sum": steps.kv_tokens.to_numpy(),
        "start_ms": steps.start_ms.to_numpy(),
        "duration_ms": steps.duration_ms.to_numpy(),
    }


# -- times ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Relative errors of one time over all requests.

    Attributes:
        mean: of the absolute values, percent.
        most: percent.
    """

    mean: float
    most: float

    def __str__(self) -> str:
        """Print both with two digits."""
        return f"mean {self.mean:.2g} %, max {self.most:.2g} %"


def errors(record: RunRecord, theirs: pd.DataFrame, until_s: float = np.inf) -> dict[str, Errors]:
    """Return the errors of TTFT and E2E, request by request, of those finished by `until_s`."""
    done = record.requests["finish_s"] <= until_s
    found = {}
    for name, end in (("ttft", "first_token_s"), ("e2e", "finish_s")):
        ours_s = record.requests[end] - record.requests["arrival_s"]
        known = theirs[f"{name}_s"] if f"{name}_s" in theirs else theirs[f"{name}_ms"] / MS_PER_S
        off = np.abs(ours_s / known.to_numpy() - 1)[done] * 100
        found[name] = Errors(float(off.mean()), float(off.max()))
    return found


# -- entries of a table that was rounded ----------------------------------------------------------


def unrounded_entries(cost: VidurCost) -> dict[Key, float]:
    """Return entries of the table of chunks behind cached tokens, from the recorded steps.

    The table was published with four significant digits, the steps with eight and more; all other
    tables have six decimals. What a recorded step took, less everything else in it, is its entry.
    """
    steps = table("vidur_sarathi_q2_n1000_batches")
    seen: dict[Key, list[float]] = {}
    for step in steps[steps.prefill_kv_rounded_sum > 0].itertuples():
        average = up(step.decode_kv_sum // max(step.n_decode_reqs, 1), KV_GRAIN)
        rest = cost.dense_ms(step.prefill_tokens + step.n_decode_reqs)
        rest += cost.decode_ms(step.n_decode_reqs, average)
        ms = (step.exec_ms / LAYERS - rest) / (SEVERAL if step.n_prefill_reqs > 1 else 1.0)
        seen.setdefault((step.prefill_kv_rounded_sum, step.prefill_rss_chunk), []).append(ms)
    return {key: float(np.mean(values)) for key, values in seen.items()}
