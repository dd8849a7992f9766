"""Products and sums beyond machine words: compiled as interpreted, never wrapped."""

import subprocess
import sys

import pytest
from forms import ROOT, SITE, why_skipped

REASON = why_skipped()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

PROGRAM = """
import random
from sim.core.loop import steps_to_cover

rng = random.Random(0)
edges = [2**e + d for e in (29, 30, 31, 32, 61, 62, 63, 64, 70) for d in (-1, 0, 1)]
for _ in range(4000):
    first = rng.choice(edges) if rng.random() < 0.5 else rng.randint(1, 2 ** rng.randint(1, 66))
    increment = rng.choice([0, 1, 2**31, 2**62, rng.randint(0, 2 ** rng.randint(1, 64))])
    steps = rng.randint(1, 2 ** rng.randint(1, 33))
    ends = steps * first + increment * (steps * (steps - 1) // 2)
    print(*(steps_to_cover(ends + d, first, increment) for d in (-1, 0, 1)), steps)
"""


def printed(root) -> str:
    command = [sys.executable, "-P", "-c", PROGRAM]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_products_at_the_borders_of_machine_words():
    found = printed(SITE)
    assert found == printed(ROOT)
    for line in found.splitlines():
        _, at_end, after, steps = map(int, line.split())
        assert (at_end, after) == (steps, steps + 1)
