"""The hash ids of prompt blocks: from a column of the trace, or from a file beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workloads.base import Ints, bad
from workloads.pieces import Column, Piece
from workloads.prefix_blocks import read_prefix_blocks

Lists = list[tuple[int, ...]]


class Hashes:
    """Collects the ids of the requests of a trace, from its own column.

    Args:
        block_tokens: tokens of a block.
        whole: whether the ids have to cover the whole prompt.
    """

    def __init__(self, block_tokens: int, whole: bool = False) -> None:
        self.block_tokens = block_tokens
        self._whole = whole
        self._lists: Lists | None = None

    def add(self, path: Path, piece: Piece, input_len: Ints) -> None:
        """Check and append the ids of one piece, whose prompts are the last of `input_len`."""
        size = piece.columns.get("hash_block_tokens")
        if size is not None:
            self._set_size(path, piece, size)
        column = piece.columns.get("block_hashes")
        if column is None:
            return
        if self._lists is None:
            self._lists = []
        lengths = input_len[len(input_len) - len(piece.rows) :].tolist()
        for row, ids, tokens in zip(piece.rows, column.values, lengths, strict=True):
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise bad(path, f"{column.name}: expected a list of integers", row)
            if self._whole and len(ids) != -(-tokens // self.block_tokens):
                blocks = f"{-(-tokens // self.block_tokens)} blocks of {self.block_tokens}"
                message = f"{column.name} has {len(ids)} ids, the prompt of {tokens} tokens"
                raise bad(path, f"{message} has {blocks}", row)
            self._lists.append(tuple(ids))

    def lists(self, path: Path) -> Lists | None:
        """Return the ids of each request, in the order of the file; None: there are none."""
        return self._lists

    def _set_size(self, path: Path, piece: Piece, column: Column) -> None:
        sizes = set(np.asarray(column.values).tolist())
        if len(sizes) > 1 or not all(size == size and size >= 1 for size in sizes):
            shown = ", ".join(f"{size:g}" for size in sorted(sizes)[:4])
            raise bad(path, f"{column.name}: expected one size of 1 or more, found {shown}")
        self.block_tokens = int(sizes.pop())


class SideFile(Hashes):
    """The ids of a file beside the trace (`workloads.prefix_blocks`).

    Args:
        blocks: the file.
        block_tokens: tokens of a block.
    """

    def __init__(self, blocks: Path, block_tokens: int) -> None:
        super().__init__(block_tokens)
        self._file = blocks
        self._blocks = read_prefix_blocks(blocks)
        self._used = 0

    def add(self, path: Path, piece: Piece, input_len: Ints) -> None:
        """Append the ids of the piece's requests."""
        if self._lists is None:
            self._lists = []
        column = piece.columns.get("request")
        first = len(self._lists)
        numbers = range(first, first + len(piece.rows)) if column is None else column.values
        lengths = input_len[len(input_len) - len(piece.rows) :].tolist()
        for row, number, tokens in zip(piece.rows, numbers, lengths, strict=True):
            ids = self._blocks.get(number, ())
            if len(ids) * self.block_tokens > tokens:
                blocks = f"{len(ids)} blocks of {self.block_tokens} tokens"
                message = f"request {number} has {blocks}, its prompt in {path.name} has {tokens}"
                raise bad(self._file, f"{message} tokens (row {row})")
            self._used += bool(ids)
            self._lists.append(ids)

    def lists(self, path: Path) -> Lists | None:
        """Return the ids of each request; every row of the file has to be one of them."""
        if self._used < len(self._blocks):
            missing = len(self._blocks) - self._used
            raise bad(self._file, f"{missing} of its requests are not in {path} (or there twice)")
        return self._lists
