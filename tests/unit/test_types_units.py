"""Seconds to the integer clock and back."""

import random

import pytest

from sim.types import to_fs, to_fs_ceil, to_s


def test_decimal_seconds_are_exact_femtoseconds():
    assert to_fs(0.055) == 55 * 10**12
    assert to_fs(0.1) + to_fs(0.2) == to_fs(0.3)  # floats say 0.30000000000000004
    assert to_s(to_fs(1.25)) == 1.25
    assert to_fs(0.0) == 0


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 8.0, 100.0, 1e4, 1e6, 1e9])
def test_to_fs_ceil_is_not_early_and_not_late(scale: float):
    """A timer set to it fires when the policy's clock shows at least `seconds`."""
    rng = random.Random(0)
    for seconds in [scale, *(scale * rng.random() for _ in range(500))]:
        due = to_fs_ceil(seconds)
        assert to_s(due) >= seconds
        # Not later than rounding explains: 1 fs, and a few times 1e-16 of the time.
        assert due <= to_fs(seconds) + 1 + to_fs(seconds) // 2**50


def test_seconds_keep_the_order_of_the_clock():
    rng = random.Random(1)
    for _ in range(1000):
        at = rng.randrange(10 ** rng.randint(1, 22))
        assert to_s(at) <= to_s(at + 1)


def test_to_fs_ceil_is_the_first_that_is_not_early():
    rng = random.Random(2)
    for _ in range(500):
        seconds = 100 * rng.random()
        assert to_s(to_fs_ceil(seconds) - 1) < seconds
