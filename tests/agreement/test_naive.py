"""`continuous` against the naive loops of `naive.py`: every step of random runs (`cases.py`)."""

from collections import Counter

import pytest
from cases import AHEAD, SCHEDULERS, Noted, case, ours
from naive import Step, run

from sim.types import FS_PER_S

QUICK, FULL = 30, 400
ALL = [*SCHEDULERS, *AHEAD]


def compare(seed: int, scheduler: str, seen: Counter[str]) -> None:
    """Compare all steps (single ones), and all times (fused and single)."""
    made = case(seed, scheduler)
    steps = run(made.rows, made.reference, made.price, made.ahead)
    noted = None if made.ahead else Noted(made)  # nothing runs steps for real that are formed ahead
    single = ours(made, False, noted)
    if noted is not None:
        for at, (step, other) in enumerate(zip(steps, noted.steps, strict=False)):
            wanted = (step.chunks, sorted(step.decodes), step.kv)
            assert other == wanted, f"step {at} at {step.start / FS_PER_S} s"
    assert len(single.steps) == len(steps)
    for name, wanted in _counts(steps).items():
        assert single.steps[name].tolist() == wanted, name
    for record in (single, ours(made, True)):
        columns = record.requests
        assert columns["first_token_s"].tolist() == [row.first / FS_PER_S for row in made.rows]
        assert columns["finish_s"].tolist() == [row.finish / FS_PER_S for row in made.rows]
        assert columns["preemptions"].tolist() == [row.preemptions for row in made.rows]
    starts = {step.start for step in steps}
    seen["eviction"] += made.reference.evictions > 0
    seen["cut prompt"] += any(cached for step in steps for cached in step.cached)
    seen["arrival at the end of a step"] += any(row.arrival in starts for row in made.rows[1:])
    seen["several prompts"] += any(len(step.chunks) > 1 for step in steps)
    seen["ample"] += made.reference.evictions == 0


def _counts(steps: list[Step]) -> dict[str, list[int]]:
    """Return what the log says of steps."""
    return {
        "prefill_requests": [len(step.chunks) for step in steps],
        "prefill_tokens": [sum(tokens for _, tokens in step.chunks) for step in steps],
        "decode_requests": [len(step.decodes) for step in steps],
    }


def check(scheduler: str, count: int) -> Counter[str]:
    """Compare seeds 0 to `count` - 1; all kinds of events must have come up."""
    seen: Counter[str] = Counter()
    for seed in range(count):
        try:
            compare(seed, scheduler, seen)
        except AssertionError as error:
            error.add_note(f"case({seed}, {scheduler!r})")
            raise
    wanted = ["eviction", "arrival at the end of a step", "several prompts", "ample"]
    for event in [*wanted, *(["cut prompt"] if "v1" in scheduler else [])]:
        assert seen[event] >= count // 20, event
    return seen


@pytest.mark.parametrize("scheduler", ALL)
def test_steps_of_random_runs_are_the_naive_ones(scheduler):
    check(scheduler, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ALL)
def test_steps_of_400_random_runs_are_the_naive_ones(scheduler, record_property):
    seen = check(scheduler, FULL)
    figure = f"{FULL} random runs, every step equal; {seen['eviction']} with evictions"
    record_property("evidence", f"continuous {scheduler} against naive loops: {figure}")
