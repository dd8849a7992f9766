"""Units of the simulator's clock.

The clock counts integer femtoseconds: "has this step ended?" must not hang on the rounding of a
float sum. Seconds as floats appear in views, records and configs only.
"""

from typing import Final

N = int
"""A count (tokens, blocks, steps, requests). One alias, so that a compiler can narrow it."""

FS_PER_S: Final = 1e15
"""Femtoseconds in a second. A float: dividing by it is three times as fast as by an integer, and
still monotone, so times keep their order."""


def to_fs(seconds: float) -> int:
    """Return `seconds` as integer femtoseconds, rounded to nearest."""
    return round(seconds * FS_PER_S)


def to_fs_ceil(seconds: float) -> int:
    """Return the first femtosecond whose `to_s` is not before `seconds`.

    A timer set to it is neither early nor late for a policy that compares `now_s` with `seconds`.
    """
    near = to_fs(seconds)
    margin = 2 + (abs(near) >> 50)  # both roundings are below 2**-52 of the value
    early, due = near - margin, near + margin
    while due - early > 1:
        middle = (early + due) // 2
        if middle / FS_PER_S < seconds:
            early = middle
        else:
            due = middle
    return due


def to_s(femtoseconds: int) -> float:
    """Return `femtoseconds` as seconds."""
    return femtoseconds / FS_PER_S
