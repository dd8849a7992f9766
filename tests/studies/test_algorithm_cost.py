"""What a review of BucketServe's buckets costs with 10,000 waiting requests, in wall time."""

import random
import time

import pytest

from policies.parts.buckets import BucketQueue
from policies.parts.midpoint import BatchLimit, Midpoints
from sim.types import Request

WAITING = 10_000
BARS_S = {"without a split": 0.2e-3, "a split that moves all": 20e-3, "a merge of all": 20e-3}
REPEATS = 7


def review_s(n_max: int, theta: float, crowded: bool) -> tuple[float, dict[str, int]]:
    """Time one `adjust` of 10,000 waiting requests; with `crowded`, of 8 buckets."""
    draw = random.Random(0)
    midpoints = Midpoints(BatchLimit(n_max, 4096), theta, False, False, 8, 1)
    queue = BucketQueue(midpoints.starts(), lambda r: (0, 0, r.arrival_s, r.id, r))
    for id in range(WAITING):
        queue.push(Request(id, 0, float(id), draw.randint(1, 4095)))
    if crowded:
        queue.recut(range(0, midpoints.bins, midpoints.bins // 8))
    before = dict(queue.operation_counts)
    begin = time.perf_counter()
    midpoints.adjust(queue, 0, 0.0)
    elapsed_s = time.perf_counter() - begin
    return elapsed_s, {name: n - before[name] for name, n in queue.operation_counts.items()}


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "n_max", "theta", "crowded", "changes"),
    [
        ("without a split", 4, 1.0, True, {"splits": 0, "merges": 0, "moves": 0}),
        ("a split that moves all", WAITING - 1, 0.4, False, {"splits": 1, "moves": WAITING}),
        ("a merge of all", WAITING + 1, 0.4, True, {"merges": 1, "moves": WAITING}),
    ],
)
def test_adjust_is_cheap(record_property, what, n_max, theta, crowded, changes):
    found = [review_s(n_max, theta, crowded) for _ in range(REPEATS)]
    best_s = min(seconds for seconds, _ in found)
    for _, counts in found:
        assert {name: counts[name] for name in changes} == changes
    record_property(
        "evidence",
        f"Algorithm 1, adjust at 10,000 waiting, {what}: {best_s * 1e3:.3f} ms "
        f"(bar {BARS_S[what] * 1e3:g} ms, best of {REPEATS})",
    )
    assert best_s < BARS_S[what]
