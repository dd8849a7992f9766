"""From the prefixes a trace tells of to what each request shares with others."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from sim.types import N, Trace

Chain: TypeAlias = tuple[tuple[N, N], ...]
"""As `Request.prefix`: (node, tokens from the start of the prompt to the node's end), in order."""


def shared_prefixes(trace: Trace) -> list[Chain] | None:
    """Return what each request shares of its prompt; None: nobody shares anything.

    Only what at least two requests begin with counts; nobody could find the rest again. Block
    hashes go before groups. They may have any block size: a node ends at a token, and an instance
    takes the blocks of its own size that lie in front of it.

    Raises:
        ValueError: groups without lengths.
    """
    if trace.block_hashes is not None:
        chains = _by_hashes(trace.block_hashes, trace.hash_block_tokens, trace.input_len.tolist())
    elif trace.prefix_group is not None:
        if trace.prefix_len is None:
            raise ValueError("the trace has prefix groups but no shared lengths")
        chains = _by_groups(trace)
    else:
        return None
    return chains if any(chains) else None


def _by_groups(trace: Trace) -> list[Chain]:
    """One node a group, of which a request has as much as it shares."""
    assert trace.prefix_group is not None
    assert trace.prefix_len is not None
    group, length = trace.prefix_group, np.minimum(trace.prefix_len, trace.input_len)
    chains: list[Chain] = [()] * len(trace)
    members = np.flatnonzero(group >= 0)
    order = members[np.argsort(group[members], kind="stable")]
    starts = np.flatnonzero(np.diff(group[order])) + 1
    for node, rows in enumerate(np.split(order, starts) if len(order) else []):
        shared = length[rows]
        # Without a length of its own it has what the others share: it came first.
        shared = np.where(shared > 0, shared, np.minimum(shared.max(), trace.input_len[rows]))
        if len(rows) < 2:
            continue
        most = int(np.sort(shared)[-2])  # what only one request has, nobody finds again
        for row, tokens in zip(rows.tolist(), np.minimum(shared, most).tolist(), strict=True):
            if tokens:
                chains[row] = ((node, tokens),)
    return chains


def _by_hashes(
    lists: tuple[tuple[int, ...], ...], block_tokens: N, input_len: list[int]
) -> list[Chain]:
    """A block is known by its id and those before it; blocks that go together are one node."""
    places: dict[tuple[int, int], int] = {}
    counts: list[int] = []
    paths: list[list[int]] = []
    for hashes in lists:
        at, path = -1, []
        for hash_id in hashes:
            key = (at, hash_id)
            at = places.get(key, -1)
            if at < 0:
                at = places[key] = len(counts)
                counts.append(0)
            counts[at] += 1
            path.append(at)
        paths.append(path)
    chains = []
    for path, tokens in zip(paths, input_len, strict=True):
        chain: list[tuple[N, N]] = []
        before = 0
        for number, place in enumerate(path, 1):
            if counts[place] < 2:
                break
            end = min(number * block_tokens, tokens)
            if counts[place] == before:
                chain[-1] = (chain[-1][0], end)
            else:
                chain.append((place, end))
            before = counts[place]
        chains.append(tuple(chain))
    return chains
