"""Paged KV cache: pages of `block_size` tokens, a table of pages for every sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from sim.costs.catalogue import Model
from sim.types import BadInput

MAX_SEQUENCES = 1024
"""Sequences that may hold pages at once."""

TRASH_ROW = MAX_SEQUENCES
"""Row of the page table whose pages are one spare page: what padding tokens are written to."""


class OutOfBlocks(MemoryError):
    """The cache has too few free pages for what was asked."""


class PagedCache:
    """Keys and values of all layers, and who holds which page.

    `keys[layer]` and `values[layer]` have shape [slots, kv_heads, head_dim]; token `t` of the
    sequence in row `r` lies in slot `table[r, t // block_size] * block_size + t % block_size`.
    Table entries beyond a sequence's pages name arbitrary pages: a padded batch reads them
    (as it would read padding) and masks what it read.
    The content starts as random numbers, so that a sequence may pretend to have a prefix.

    Args:
        spec: model whose keys and values are kept.
        num_blocks: pages.
        block_size: tokens in a page.
        dtype: type of keys and values.
        device: where they lie.
    """

    def __init__(
        self,
        spec: Model,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise BadInput(f"a KV cache of {num_blocks} blocks of {block_size} tokens: both >= 1")
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_tokens = min(spec.max_length, num_blocks * block_size)
        slots = (num_blocks + 1) * block_size
        content = torch.empty(
            (spec.layers, 2, slots, spec.kv_heads, spec.head_dim), dtype=dtype, device=device
        )
        generator = torch.Generator(device).manual_seed(0)
        for part in content:
            part.normal_(generator=generator)
        self.keys = [content[layer, 0] for layer in range(spec.layers)]
        self.values = [content[layer, 1] for layer in range(spec.layers)]
        columns = -(-self.max_tokens // block_size)
        entries = torch.arange((MAX_SEQUENCES + 1) * columns, dtype=torch.int32)
        table = (entries % num_blocks).reshape(MAX_SEQUENCES + 1, columns)
        table[TRASH_ROW] = num_blocks
        self.table = table.to(device)
        self._spare_entry = {TRASH_ROW * columns: num_blocks}
        self._unwritten = dict(self._spare_entry)
        self._free_pages = list(range(num_blocks - 1, -1, -1))
        self._free_rows = list(range(MAX_SEQUENCES - 1, -1, -1))
        self._pages: dict[int, list[int]] = {}
        self._rows: dict[int, int] = {}

    @property
    def free_blocks(self) -> int:
        """Pages nobody holds."""
        return len(self._free_pages)

    def row(self, sequence: int) -> int:
        """Return the sequence's row of the page table."""
        return self._rows[sequence]

    def hold(self, sequence: int, tokens: int) -> None:
        """Make the pages of a sequence cover `tokens` tokens; all or nothing.

        Raises:
            OutOfBlocks: too few free pages, or too many sequences.
            BadInput: more tokens than a sequence may have.
        """
        if tokens > self.max_tokens:
            raise BadInput(f"sequence {sequence}: {tokens} tokens, at most {self.max_tokens} fit")
        pages = self._pages.get(sequence, [])
        needed = -(-tokens // self.block_size) - len(pages)
        if needed > len(self._free_pages):
            raise OutOfBlocks(
                f"sequence {sequence}: {needed} more KV blocks for {tokens} tokens, "
                f"{len(self._free_pages)} of {self.num_blocks} are free"
            )
        if sequence not in self._rows:
            if not self._free_rows:
                raise OutOfBlocks(f"sequence {sequence}: {MAX_SEQUENCES} sequences hold KV blocks")
            self._rows[sequence] = self._free_rows.pop()
            self._pages[sequence] = pages
        if needed <= 0:
            return
        first = self._rows[sequence] * self.table.shape[1] + len(pages)
        taken = [self._free_pages.pop() for _ in range(needed)]
        self._unwritten |= zip(range(first, first + needed), taken, strict=True)
        pages += taken

    def release(self, sequence: int) -> None:
        """Give the pages of a sequence back."""
        self._free_pages.extend(reversed(self._pages.pop(sequence)))
        self._free_rows.append(self._rows.pop(sequence))

    def refresh_table(self) -> None:
        """Bring the device's page table up to date, before a step.

        An entry is written even if none is new: `measure` rewinds sequences, whose pages are there
        already, and its steps are to cost the host what those of an engine do.
        """
        written = [list(self._unwritten), list(self._unwritten.values())]
        entries, pages = torch.tensor(written, device=self.table.device)
        self.table.view(-1)[entries] = pages.int()
        self._unwritten = dict(self._spare_entry)

    def slots(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return the slots of tokens, given their table rows and positions (broadcast)."""
        column = (positions // self.block_size).clamp(max=self.table.shape[1] - 1)
        return self.table[rows, column].long() * self.block_size + positions % self.block_size
