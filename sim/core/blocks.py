"""The block pool behind the counted KV cache: which blocks later requests may find again.

The rules are those of vLLM V1 (costs.md section 2): a full block is known by its whole prefix from
the moment its step is scheduled; equal prefixes share blocks, counted by references; blocks that
nobody holds stay known until the free list, least recently freed first, hands them out; a request's
blocks are freed last first; a hit covers whole blocks and at most (tokens - 1) // block_size.

There are no block ids. Blocks that nobody can find again are a number, and runs of neighbours with
equal fate are one `Piece`, split where fates part, so a shared prompt costs the same whatever its
length. In the free list each piece knows how many nameless blocks lie ahead of it; blocks leave
from its head, and those counted as taken are struck off only when somebody looks. A decoding batch
and requests that share nothing therefore cost nothing here. `tests/unit/naive_pool.py` has the
blocks, ids and list written out; both agree on random histories.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.types import N, PrefixCache, Prospect, Request, View
from sim.types.request import WAITING

Chunk = tuple[Request, N]


class Piece:
    """Neighbouring blocks `lo` to `hi` of one node, in one state.

    A node is a stretch of prompt that several requests have, or (below 0) what one request does not
    share. Blocks count from the start of the prompt.
    """

    __slots__ = ("after", "ahead", "before", "heads", "hi", "lo", "node", "readers", "refs", "rest")

    def __init__(self, node: N, lo: N, hi: N, refs: N) -> None:
        self.node = node
        self.lo = lo
        self.hi = hi
        self.refs = refs
        """Requests that hold it; with none it stands in the free list."""
        self.readers: N = 0
        """Those of them that decode, where somebody counts them (`sim.core.attention`)."""
        self.before = self.after = self
        """Neighbours in the free list."""
        self.ahead: N = 0
        """Nameless free blocks between `before` and here."""
        self.rest: Piece | None = None
        """What was split off behind it; who holds that holds this, unless it is a head."""
        self.heads: N = 0
        """Holders that have this and not what it was split off from."""


class BlockPool(PrefixCache):
    """The reusable blocks of one instance; the numbers stay in its view."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.size: N = view.block_size
        self.recomputed_tokens: N = 0
        """Tokens that requests had to cover again, after a preemption or a failure."""
        self.recovered_tokens: N = 0
        """Those of them that were still cached."""
        self.clear()

    def clear(self) -> None:
        """Forget everything: all blocks are free and nameless."""
        self.nodes: dict[N, list[Piece]] = {}
        """The pieces of each node, first known first."""
        self.ends = Piece(0, 0, 0, 0)
        """Both ends of the free list, a ring."""
        self.holding: dict[N, list[tuple[Piece, N]]] = {}
        """Request id -> the pieces it holds: the first of each row of `rest`, and its end."""
        self.last = self.ends
        """The last piece that somebody was given."""
        self.listed: N = 0
        """Free blocks up to the last piece; those behind it are nameless."""
        self.freed: N = 0
        """Blocks put at the end of the free list so far, less those taken from its middle."""
        self.struck: N = 0
        """Blocks struck off the head of the list so far."""

    # -- the free list ----------------------------------------------------------------------

    def sync(self, ahead: N = 0) -> None:
        """Strike off what was taken since, and `ahead` blocks that are about to be."""
        taken = self.view.total_blocks + self.freed - self.view.free_blocks + ahead
        due = taken - self.struck
        if due <= 0:
            return
        self.struck = taken
        ends = self.ends
        while due and ends.after is not ends:
            piece = ends.after
            nameless = min(piece.ahead, due)
            piece.ahead -= nameless
            count = min(piece.hi - piece.lo, due - nameless)
            piece.hi -= count
            self.listed -= nameless + count
            due -= nameless + count
            if piece.hi == piece.lo:
                piece.after.before = ends
                ends.after = piece.after
                self._forget(piece)

    def _append(self, piece: Piece) -> None:
        """Put blocks that nobody holds at the end of the free list, the last first."""
        self.sync()
        view, ends = self.view, self.ends
        # What is struck off already, but not yet taken, is free no more.
        free = view.total_blocks + self.freed - self.struck
        count = piece.hi - piece.lo
        piece.ahead = free - self.listed
        piece.before, piece.after = ends.before, ends
        ends.before.after = ends.before = piece
        self.listed = free + count
        view.free_blocks += count
        self.freed += count

    def _take(self, piece: Piece) -> None:
        """Take a piece out of the free list, wherever it stands."""
        count, after = piece.hi - piece.lo, piece.after
        piece.before.after = after
        after.before = piece.before
        self.listed -= count
        if after is self.ends:
            self.listed -= piece.ahead
        else:
            after.ahead += piece.ahead
        self.view.free_blocks -= count
        self.freed -= count

    def split(self, piece: Piece, at: N) -> Piece:
        """Cut a piece in two before block `at`, which changes nothing; return the rear one."""
        rest = Piece(piece.node, at, piece.hi, piece.refs)
        rest.readers = piece.readers
        rest.rest, piece.rest = piece.rest, rest
        piece.hi = at
        if not piece.refs:  # the rear one is freed first
            rest.before, rest.after = piece.before, piece
            piece.before.after = piece.before = rest
            rest.ahead, piece.ahead = piece.ahead, 0
        pieces = self.nodes[piece.node]
        pieces.insert(pieces.index(piece) + 1, rest)
        return rest

    # -- what is known ----------------------------------------------------------------------

    def _know(self, piece: Piece) -> None:
        pieces = self.nodes.get(piece.node)
        if pieces is None:
            self.nodes[piece.node] = [piece]
        else:
            pieces.append(piece)

    def _forget(self, piece: Piece) -> None:
        pieces = self.nodes[piece.node]
        if len(pieces) == 1:
            del self.nodes[piece.node]
        else:
            pieces.remove(piece)

    def _found(self, request: Request) -> list[Piece]:
        """Return the cached blocks a waiting request begins with, as pieces with no others."""
        most = (request.target_tokens - 1) // self.size
        found: list[Piece] = []
        at: N = 0
        for node, tokens in request.prefix:
            end = min(tokens // self.size, most)
            while at < end:
                piece = self._part(node, at, end)
                if piece is None:
                    return found
                found.append(piece)
                at = piece.hi
        while at < most and request.preemptions:
            piece = self._part(~request.id, at, most)
            if piece is None:
                break
            found.append(piece)
            at = piece.hi
        return found

    def _part(self, node: N, at: N, end: N) -> Piece | None:
        """Return a piece from block `at` to at most `end`; None: that block is not known."""
        for piece in self.nodes.get(node, ()):
            if piece.lo <= at < piece.hi:
                if piece.lo < at:
                    piece = self.split(piece, at)
                if end < piece.hi:
                    self.split(piece, end)
                return piece
        return None

    def prospect(self, growth: N, chunks: Sequence[Chunk] = ()) -> Prospect:
        """Return what a plan would find; see `PrefixCache`."""
        return Lookahead(self, growth, chunks)

    # -- requests ---------------------------------------------------------------------------

    def start(self, chunks: Sequence[Chunk], growth: N) -> Sequence[Chunk]:
        """Let the prompts of a step begin where the cache ends; return the chunks with that.

        Blocks found are held from now on; a hit that would take more free blocks than there are is
        not used. What each chunk fills is known before the next one looks, as in vLLM.

        Args:
            chunks: those of the plan.
            growth: blocks that the decoding batch takes in the same step.
        """
        for request, _ in chunks:
            if request.prefix or request.preemptions:
                return self._start(chunks, growth)
        return chunks

    def _start(self, chunks: Sequence[Chunk], growth: N) -> Sequence[Chunk]:
        size = self.size
        ahead = growth
        started: list[Chunk] = []
        for request, tokens in chunks:
            if request.state == WAITING and (request.prefix or request.preemptions):
                self.sync(ahead)
                cached = self._hold(request, tokens, self.view.free_blocks - ahead)
                tokens = min(tokens, request.target_tokens - cached)
            total = request.prefilled + tokens
            ahead += -(-total // size) - request.held_blocks
            if request.prefix:
                self._publish(request, total)
            started.append((request, tokens))
        return started

    def _hold(self, request: Request, tokens: N, room: N) -> N:
        """Give a request the cached blocks it begins with; return their tokens."""
        found = self._found(request)
        hit = found[-1].hi if found else 0
        cached = hit * self.size
        total = min(cached + tokens, request.target_tokens)
        free = sum([piece.hi - piece.lo for piece in found if not piece.refs])
        if found and -(-total // self.size) - hit + free > room:
            hit = cached = 0
            found = []
        for piece in found:
            if not piece.refs:
                self._take(piece)
            if piece.node < 0:  # its own: nobody else can look for them while it has them
                self._forget(piece)
                continue
            piece.refs += 1
            self._note(request, piece)
        request.prefilled = cached
        request.held_blocks = hit
        if request.preemptions or request.failures:
            self.recomputed_tokens += request.target_tokens
            self.recovered_tokens += cached
        else:
            request.cached_tokens = cached
        return cached

    def _publish(self, request: Request, tokens: N) -> None:
        """Make known the shared blocks that are full with the first `tokens` tokens cached."""
        at: N = request.known_blocks
        for node, end_tokens in request.prefix:
            end = min(end_tokens, tokens) // self.size
            if at < end:
                piece = Piece(node, at, end, 1)
                self._know(piece)
                self._note(request, piece)
                at = end

    def _note(self, request: Request, piece: Piece) -> None:
        """Note that a request holds a piece, the next of its prompt."""
        held = self.holding.setdefault(request.id, [])
        hi: N = piece.hi
        if held and self.last.rest is piece:
            held[-1] = (held[-1][0], hi)
        else:
            piece.heads += 1
            held.append((piece, hi))
        self.last = piece
        request.known_blocks = hi

    def release(self, request: Request) -> None:
        """Free a request's blocks for good: those that it shares can be found again."""
        nameless = request.held_blocks - request.known_blocks
        self.view.free_blocks += nameless
        self.freed += nameless
        request.held_blocks = 0
        if request.known_blocks:
            self._let_go(request)

    def keep(self, request: Request) -> None:
        """Free a preempted request's blocks, all of which it may find again."""
        if request.prefix:
            self._publish(request, request.prefilled)
        first: N = request.known_blocks
        full = max(request.prefilled // self.size, first)
        nameless = request.held_blocks - full
        self.view.free_blocks += nameless
        self.freed += nameless
        if full > first:
            piece = Piece(~request.id, first, full, 0)
            self._know(piece)
            self._append(piece)
        request.held_blocks = 0
        if first:
            self._let_go(request)

    def held_by(self, request: Request) -> list[Piece]:
        """Return the shared blocks of a request, the first first."""
        held: list[Piece] = []
        for piece, hi in self.holding.get(request.id, ()):
            held.append(piece)
            while piece.hi < hi and piece.rest is not None:
                piece = piece.rest
                held.append(piece)
        return held

    def _let_go(self, request: Request) -> None:
        """Give up the shared blocks of a request, the last first."""
        held = self.held_by(request)
        for piece, _ in self.holding.pop(request.id):
            piece.heads -= 1
        for piece in reversed(held):
            piece.refs -= 1
            if not piece.refs:
                self._append(piece)
            if piece.rest is not None and piece.rest.refs == piece.refs:
                self._join(piece, piece.rest)
        request.known_blocks = 0

    def _join(self, piece: Piece, rest: Piece) -> None:
        """Undo a split, if both parts have the same holders, or are free side by side."""
        if rest.lo == rest.hi:  # handed out
            piece.rest = None
            return
        if rest.heads:
            return
        if not piece.refs:
            if piece.before is not rest or piece.ahead:
                return
            piece.before, piece.ahead = rest.before, rest.ahead
            rest.before.after = piece
        piece.hi, piece.rest = rest.hi, rest.rest
        self._forget(rest)

    def spare_copies(self) -> N:
        """Return how many blocks sharing saves now: references beyond the first."""
        return sum(
            (piece.refs - 1) * (piece.hi - piece.lo)
            for pieces in self.nodes.values()
            for piece in pieces
            if piece.refs
        )


class Lookahead(Prospect):
    """A pool as it would be after some admissions."""

    def __init__(self, pool: BlockPool, growth: N, chunks: Sequence[Chunk]) -> None:
        pool.sync()
        self.pool = pool
        self.cursor = pool.ends.after
        """Where the head of the free list would stand."""
        self.passed: N = 0
        """Nameless blocks ahead of the cursor that are struck off."""
        self.lost: dict[Piece, N] = {}
        """Pieces that would be handed out -> where what is left of them ends."""
        self.held: dict[Piece, bool] = {}
        """Pieces that would be held by those admitted so far."""
        self.known: dict[N, list[tuple[N, N]]] = {}
        """Blocks of each node that they would make known."""
        self.hit: N = 0
        self.found: list[Piece] = []
        blocks = growth
        for request, tokens in chunks:
            total = request.prefilled + tokens
            blocks += -(-total // pool.size) - request.held_blocks
            self._publish(request, request.known_blocks, total)
        self._strike(blocks)

    def cached(self, request: Request) -> N:
        """Return how many tokens of a waiting request are cached, if it is admitted next."""
        self.hit = 0
        self.found = []
        if not (request.prefix or request.preemptions):
            return 0
        size = self.pool.size
        most = (request.target_tokens - 1) // size
        for node, tokens in request.prefix:
            end = min(tokens // size, most)
            self._find(node, end)
            if self.hit < end:
                return self.hit * size
        if request.preemptions:
            self._find(~request.id, most)
        return self.hit * size

    def needs(self, request: Request, tokens: N) -> N:
        """Return the free blocks that `tokens` tokens after the cached ones would take."""
        free = -(-tokens // self.pool.size)  # the cached ones fill their blocks
        for piece in self.found:
            if not (piece.refs or piece in self.held):
                free += self.lost.get(piece, piece.hi) - piece.lo
        return free

    def admit(self, request: Request, tokens: N) -> N:
        """Admit the request asked about last; return the free blocks that takes."""
        needed = self.needs(request, tokens)
        for piece in self.found:
            if not piece.refs:
                self.held[piece] = True
        self._strike(-(-tokens // self.pool.size))
        self._publish(request, self.hit, self.hit * self.pool.size + tokens)
        return needed

    def _publish(self, request: Request, at: N, tokens: N) -> None:
        """Note the shared blocks from `at` on that are full with `tokens` tokens."""
        for node, end_tokens in request.prefix:
            end = min(end_tokens, tokens) // self.pool.size
            if at < end:
                self.known.setdefault(node, []).append((at, end))
                at = end

    def _find(self, node: N, end: N) -> None:
        """Extend the hit within a node, up to block `end`."""
        while self.hit < end:
            piece = self._part(node, self.hit, end)
            if piece is not None:
                self.found.append(piece)
                self.hit = self.lost.get(piece, piece.hi)
                continue
            ends = [hi for lo, hi in self.known.get(node, ()) if lo <= self.hit < hi]
            if not ends:
                return
            self.hit = min(ends[0], end)

    def _part(self, node: N, at: N, end: N) -> Piece | None:
        for piece in self.pool.nodes.get(node, ()):
            hi = self.lost.get(piece, piece.hi)
            if piece.lo <= at < hi:
                if piece.lo < at:
                    piece = self._split(piece, at)
                if end < hi:
                    self._split(piece, end)
                return piece
        return None

    def _split(self, piece: Piece, at: N) -> Piece:
        """Cut a piece in two; the rear one stands in the free list before it."""
        rest = self.pool.split(piece, at)
        if piece in self.lost:
            self.lost[rest] = self.lost.pop(piece)
        if piece in self.held:
            self.held[rest] = True
        if piece is self.cursor:
            self.cursor = rest
        return rest

    def _strike(self, blocks: N) -> None:
        """Take blocks from the head of the free list."""
        due = blocks
        ends = self.pool.ends
        while due and self.cursor is not ends:
            piece = self.cursor
            nameless = min(piece.ahead - self.passed, due)
            self.passed += nameless
            due -= nameless
            if not due:
                break
            if piece not in self.held:
                hi = self.lost.get(piece, piece.hi)
                count = min(hi - piece.lo, due)
                self.lost[piece] = hi - count
                due -= count
                if hi - count > piece.lo:
                    break
            self.cursor = piece.after
            self.passed = 0
