"""Units of the simulator's clock.

The clock counts integer femtoseconds: "has this step ended?" must not hang on the rounding of a
float sum. Seconds as floats appear in views, records and configs only.
"""

N = int
"""A count (tokens, blocks, steps, requests). One alias, so that a compiler can narrow it."""

FS_PER_S = 10**15
"""Femtoseconds in a second."""


def to_fs(seconds: float) -> int:
    """Return `seconds` as integer femtoseconds, rounded to nearest."""
    return round(seconds * FS_PER_S)


def to_fs_ceil(seconds: float) -> int:
    """Return the first femtosecond that is not before `seconds`, exactly.

    A timer set to it finds `to_s(now) >= seconds`, whatever the rounding.
    """
    numerator, denominator = seconds.as_integer_ratio()
    return -(-numerator * FS_PER_S // denominator)


def to_s(femtoseconds: int) -> float:
    """Return `femtoseconds` as seconds (correctly rounded division)."""
    return femtoseconds / FS_PER_S
