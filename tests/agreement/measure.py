"""Print the tables of docs/agreement.md: `python tests/agreement/measure.py` (half a minute)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cases import Case, case, ours
from lookup import VidurCost
from naive import V0, V1, Row, Step, run
from peers import requests, table
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

RUNS = 200


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
    print(f"\n| vLLM's way, {RUNS} random runs | runs that differ | E2E there: mean, most |")
    print("|---|---|---|")
    _naive_row("who evicts itself ends the walk (`priority`)", "v1-priority", _stops)
    _naive_row("the budget of the evicted is used (`priority`)", "v1-priority", _small_budget)
    _naive_row("chunks before decodes admitted later (threshold)", "v1", _side_by_side)
    _spare_rows()


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


def _stops(made: Case, seed: int) -> None:
    """Let vLLM's walk stop where a request evicts itself."""
    _v1(made).stops = True


def _small_budget(made: Case, seed: int) -> None:
    """Give both a budget that runs out."""
    _budget(made, seed, 0)


def _side_by_side(made: Case, seed: int) -> None:
    """Give both a budget that runs out, and prompts unfinished side by side."""
    _budget(made, seed, 8)


def _budget(made: Case, seed: int, threshold: int) -> None:
    seats = made.config["max_num_seqs"]
    budget = max(seats, (seats, seats + 7, 32)[seed % 3])
    made.config["max_num_batched_tokens"] = made.reference.budget = budget
    made.config["long_prefill_token_threshold"] = threshold
    _v1(made).threshold = threshold or budget


def _v1(made: Case) -> V1:
    assert isinstance(made.reference, V1)
    return made.reference


def _naive_row(title: str, scheduler: str, change: Callable[[Case, int], None]) -> None:
    """Print in how many runs vLLM's way leads elsewhere, and what that does to the mean E2E."""
    off = []
    for seed in range(RUNS):
        made = case(seed, scheduler)
        change(made, seed)
        run(made.rows, made.reference, made.price)
        columns = ours(made, True).requests
        e2e_s = columns["finish_s"] - columns["arrival_s"]
        theirs_s = np.array([row.finish - row.arrival for row in made.rows]) / 1e15
        if np.abs(e2e_s - theirs_s).max() > 1e-9:
            off.append(theirs_s.mean() / e2e_s.mean() - 1)
    worth = f"{np.mean(off) * 100:+.2g} %, {max(off, key=abs) * 100:+.2g} %" if off else "none"
    print(f"| {title} | {len(off)} | {worth} |")


def _spare_rows() -> None:
    """Print what V0's free block for every decode is worth when memory is short."""
    cost = VidurCost()

    def price(step: Step) -> int:
        if not step.chunks:
            piece = cost.decode(len(step.decodes))
            while piece.next is not None and step.kv >= piece.kv_end:
                piece = piece.next
            return piece.base_fs
        new = sum(tokens for _, tokens in step.chunks)
        quad = sum(tokens * tokens for _, tokens in step.chunks)
        return cost.step(len(step.chunks), new, new, quad, 0, 0)

    trace = requests()
    columns = (trace.arrival_s, trace.input_len, trace.output_len)
    print("\n| V0, blocks | evictions | with a free block for every decode | mean E2E |")
    print("|---|---|---|---|")
    for blocks in (1600, 2000, 2400):
        found = []
        for spare in (False, True):
            rows = [
                Row(at, round(float(arrival_s) * 1e15), int(prompt), int(output))
                for at, (arrival_s, prompt, output) in enumerate(zip(*columns, strict=True))
            ]
            scheduler = V0(blocks, 16, 128, 4096, blocks // 100, True, False, spare)
            run(rows, scheduler, price)
            found.append((scheduler.evictions, np.mean([row.finish - row.arrival for row in rows])))
        change = found[1][1] / found[0][1] - 1
        print(f"| {blocks:,} | {found[0][0]} | {found[1][0]} | {change * 100:+.2g} % |")


if __name__ == "__main__":
    main()
