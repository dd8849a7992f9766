"""Print the tables of docs/agreement.md: `python tests/agreement/measure.py` (a few seconds)."""

from __future__ import annotations

import numpy as np
from lookup import VidurCost
from peers import table
from runs import (
    DECODE_TOKENS,
    VIDUR_POLICIES,
    equal_batches,
    errors,
    simdistserve,
    unrounded_entries,
    vidur,
    vidur_batches,
)


def main() -> None:
    """Print what agrees, and what each difference is worth."""
    print("| run | batches equal | TTFT, each request | E2E, each request |\n|---|---|---|---|")
    entries = unrounded_entries(VidurCost())
    _vidur_row("vllm", "Vidur, vllm", VidurCost())
    _vidur_row("sarathi", "Vidur, sarathi", VidurCost(entries))
    _vidur_row("sarathi", "Vidur, sarathi, table as published", VidurCost())
    iterations = table("simdistserve_distserve_q2_n1000_iterations")
    times = table("simdistserve_distserve_q2_n1000_requests")
    off = errors(simdistserve(), times)
    count = len(iterations)
    print(f"| simdistserve | {count:,} of {count:,} | {off['ttft']} | {off['e2e']} |")

    print("\n| difference, left out | TTFT, each request | E2E, each request |\n|---|---|---|")
    off = errors(simdistserve(more_tokens=0), times)
    print(f"| `output_len` decode steps, not one less | {off['ttft']} | {off['e2e']} |")
    off = errors(simdistserve(latency_s=1e-15), times)
    print(f"| a transfer that takes no time at all | {off['ttft']} | {off['e2e']} |")
    known = table("vidur_vllm_q2_n1000_requests")
    off = errors(vidur("vllm", VidurCost(), token_count="sum"), known)
    print(f"| a prefill counted n x longest, not the sum | {off['ttft']} | {off['e2e']} |")
    _tpot_rows()
    held = iterations.decode_ctx_sum + iterations.decode_bs
    print(f"\nLargest decode batch of simdistserve: {held.max():,} of {DECODE_TOKENS:,} tokens.")


def _vidur_row(policy: str, title: str, cost: VidurCost) -> None:
    name = f"vidur_{policy}_q2_n1000"
    batches = table(f"{name}_batches")
    record = vidur(policy, cost)
    equal = equal_batches(vidur_batches(record, cost), batches)
    until_s = np.inf
    if equal < len(batches):
        until_s = float(batches.start_s[equal])
        title += f", requests finished by {until_s:.1f} s"
    off = errors(record, table(f"{name}_requests"), until_s)
    print(f"| {title} | {equal:,} of {len(batches):,} | {off['ttft']} | {off['e2e']} |")


def _tpot_rows() -> None:
    """Print what dividing by all output tokens, not by the gaps, makes of TPOT."""
    for policy in VIDUR_POLICIES:
        times = table(f"vidur_{policy}_q2_n1000_requests")
        gaps = (times.e2e_s - times.ttft_s) / (times.decode_tokens - 1)
        less = np.mean(1 - times.tpot_vidur_s / gaps) * 100
        print(f"| TPOT over all tokens ({policy}) | | TPOT {less:.2g} % lower on average |")


if __name__ == "__main__":
    main()
