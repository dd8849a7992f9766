"""Lengths under the model's limit: `max_model_len`, `overlong`, `max_output_len`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.base import Ints, bad
from workloads.config import WorkloadConfig
from workloads.lengths.pair import Mixture

MIN_ACCEPTED = 0.001
"""Below this share of draws that fit, give up instead of drawing on."""


@dataclass(frozen=True)
class Cut:
    """Lengths after cutting, and what happened to each.

    Attributes:
        keep: whether the request stays.
        input_len: prompt tokens.
        output_len: output tokens.
        truncated: whether the prompt was too long (and cut, where the request stays).
        capped: whether the output was cut.
    """

    keep: NDArray[np.bool_]
    input_len: Ints
    output_len: Ints
    truncated: NDArray[np.bool_]
    capped: NDArray[np.bool_]

    def notes(self, rows: Ints, seen: int) -> dict[str, int]:
        """Count what happened to the first `seen` requests, of which `rows` were kept."""
        return {
            "dropped_overlong": seen - len(rows),
            "truncated": int(np.count_nonzero(self.truncated[rows])),
            "outputs_capped": int(np.count_nonzero(self.capped[rows])),
        }


def cut(config: WorkloadConfig, input_len: Ints, output_len: Ints) -> Cut:
    """Cut or drop what is too long.

    An output is cut to `max_output_len` first. A prompt is then cut to what the output leaves of
    `max_model_len`, or the request dropped; it is dropped as well when nothing is left.
    """
    capped = np.zeros(len(output_len), bool)
    if config.max_output_len is not None:
        capped = output_len > config.max_output_len
        output_len = np.minimum(output_len, config.max_output_len)
    if config.max_model_len is None:
        keep = np.ones(len(input_len), bool)
        return Cut(keep, input_len, output_len, ~keep, capped)
    room = config.max_model_len - output_len
    over = input_len > room
    keep = ~over if config.overlong == "drop" else room >= 1
    return Cut(keep, np.minimum(input_len, room), output_len, over, capped)


def draw_within(
    config: WorkloadConfig, mixture: Mixture, rng: np.random.Generator, n: int
) -> tuple[Ints, Ints, Ints, dict[str, int]]:
    """Return component, input and output length of `n` requests that fit, and the counts.

    Requests that are dropped are replaced by further draws.
    """
    drawn = mixture.draw_labelled(rng, n)
    while True:
        result = cut(config, *drawn[1:])
        rows = np.flatnonzero(result.keep)[:n]
        total = len(drawn[0])
        if len(rows) == n:
            break
        if len(rows) < MIN_ACCEPTED * total:
            found = f"{len(rows)} of {total} requests drawn fit"
            raise bad("workload.max_model_len", f"{config.max_model_len}: {found}")
        more = int((n - len(rows)) * total / len(rows) * 1.1) + 16
        again = mixture.draw_labelled(rng, more)
        source, input_len, output_len = map(np.concatenate, zip(drawn, again, strict=True))
        drawn = source, input_len, output_len
    notes = result.notes(rows, int(rows[-1]) + 1)
    return drawn[0][rows], result.input_len[rows], result.output_len[rows], notes
