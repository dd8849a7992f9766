"""What `sim.core.attention` must come to, from the definitions and in fractions. For tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from sim.core.attention import QUERY_TILES, Ctas
from sim.core.instance import Instance
from sim.types import CostModel
from sim.types.request import DECODING


def cached(instance: Instance) -> list[int]:
    """Return the tokens that each decoding request caches, from what it has emitted."""
    running = instance.running.values()
    decoding = [r for r in running if r.state == DECODING]
    return [r.input_len + instance.generated(r) - 1 for r in decoding]


def makespan(rows: Sequence[int], count: int) -> Fraction:
    """Return the bound on `count` CTAs: an even share, or the rows that one of them must have."""
    falling = sorted(rows, reverse=True)
    waves = [ceil(Fraction(j + 1, count)) * length for j, length in enumerate(falling)]
    return max(Fraction(sum(rows), count), *waves)


def factor(rows: Sequence[int], count: int) -> Fraction:
    """Return makespan over mean load."""
    return makespan(rows, count) * count / sum(rows)


def busy_tokens(lens: Sequence[int], ctas: Ctas) -> Fraction:
    """Return how many evenly shared tokens keep the CTAs as long as a decoding batch does."""
    rows = [length for length in lens for _ in range(ctas.kv_heads)]
    return makespan(rows, ctas.count) * ctas.count / ctas.kv_heads


def tiles_of(chunks: Sequence[tuple[int, int]], ctas: Ctas) -> list[int]:
    """Return the rows of prompts, given as (end, new tokens)."""
    mean = ceil(Fraction(sum(new for _, new in chunks) * ctas.group, len(chunks)))
    size = next((tile for tile in QUERY_TILES if tile >= mean), QUERY_TILES[-1])
    tiles = [end for end, new in chunks for _ in range(ceil(Fraction(new * ctas.group, size)))]
    return [end for end in tiles for _ in range(ctas.kv_heads)]


def decode_price(cost: CostModel, kv: int, read: Fraction, batch: int) -> Fraction:
    """Price a decode step whose attention lasts as long as for `read` tokens."""
    terms = cost.decode_terms(batch)
    price = terms.fixed_fs + terms.other_fs * kv + terms.attention_fs * read
    return max(Fraction(terms.floor_fs), price)


def shared_tokens(instance: Instance) -> int:
    """Return the tokens of the batch in blocks that another of the batch holds as well."""
    pool = instance.pool
    assert pool is not None
    holders: Counter[tuple[int, int]] = Counter()
    for request in instance.running.values():
        if request.state != DECODING:
            continue
        for piece, hi in pool.holding.get(request.id, ()):
            at = piece
            while True:
                holders.update((id(at), block) for block in range(at.lo, at.hi))
                if at.hi >= hi or at.rest is None:
                    break
                at = at.rest
    return sum(count - 1 for count in holders.values()) * pool.size
