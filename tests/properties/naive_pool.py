"""vLLM's block pool written out: ids, reference counts, a hash map, a free list. For tests.

Slow and plain: what `sim.core.blocks.BlockPool` must agree with, block by block.
"""

from __future__ import annotations

from collections import OrderedDict

Hash = tuple[int, int]
"""(node, number of the block in the prompt): equal for blocks with equal prefixes."""


class Block:
    """One block of the KV cache."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.refs = 0
        self.hash: Hash | None = None
        self.findable = False
        """Whether anybody may still look for it, while it is free."""


class NaivePool:
    """Blocks with names; each request's are a list, first to last."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self.blocks = [Block(id) for id in range(count)]
        self.free: OrderedDict[int, Block] = OrderedDict((b.id, b) for b in self.blocks)
        self.known: dict[Hash, dict[int, Block]] = {}
        self.held: dict[int, list[Block]] = {}

    def find(self, hashes: list[Hash], tokens: int) -> list[Block]:
        """Return the longest cached prefix: whole blocks, and never all tokens."""
        found: list[Block] = []
        for key in hashes[: (tokens - 1) // self.size]:
            if key not in self.known:
                break
            found.append(next(iter(self.known[key].values())))
        return found

    def admit(self, request: int, hashes: list[Hash], found: list[Block], total: int) -> None:
        """Give a request the blocks found, and new ones up to `total` tokens."""
        for block in found:
            if block.refs == 0:
                del self.free[block.id]
            block.refs += 1
        self.held[request] = list(found)
        self.grow(request, hashes, total)

    def grow(self, request: int, hashes: list[Hash], total: int) -> None:
        """Take new blocks up to `total` tokens; those that get full are known from now on."""
        held = self.held[request]
        while len(held) < -(-total // self.size):
            held.append(self._new())
        for block, key in zip(held[: total // self.size], hashes, strict=False):
            if block.hash is None:
                block.hash = key
                self.known.setdefault(key, {})[block.id] = block

    def _new(self) -> Block:
        _, block = self.free.popitem(last=False)
        assert block.refs == 0
        if block.hash is not None:
            same = self.known[block.hash]
            del same[block.id]
            if not same:
                del self.known[block.hash]
            block.hash = None
        block.refs = 1
        return block

    def release(self, request: int, back: bool) -> None:
        """Free a request's blocks, the last first; `back`: it was preempted and will look again."""
        for block in reversed(self.held.pop(request)):
            block.refs -= 1
            if block.refs == 0:
                shared = block.hash is not None and block.hash[0] >= 0
                block.findable = shared or (back and block.hash is not None)
                self.free[block.id] = block

    def check(self) -> None:
        """No block is lost, counted twice or freed while somebody holds it."""
        refs = [0] * len(self.blocks)
        for blocks in self.held.values():
            assert len({b.id for b in blocks}) == len(blocks)
            for block in blocks:
                refs[block.id] += 1
        for block in self.blocks:
            assert block.refs == refs[block.id]
            assert (block.refs == 0) == (block.id in self.free)

    def free_list(self) -> list[Hash | None]:
        """Return the free blocks in order: what is findable by its hash, None for the rest."""
        return [b.hash if b.findable else None for b in self.free.values()]
