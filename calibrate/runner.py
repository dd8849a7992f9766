"""Runs steps of many sequences over a real model and a paged KV cache, and times them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from calibrate.attention import PADDED, choose_packed, choose_paged
from calibrate.cache import PagedCache
from calibrate.device import Device
from calibrate.graphs import Captured, DecodeGraphs
from calibrate.layout import Part, in_pages, packed, padded
from calibrate.model import Transformer
from sim.types import BadInput


@dataclass(frozen=True)
class Chunk:
    """New prompt tokens of one sequence.

    Attributes:
        sequence: number of the sequence, chosen by the caller.
        tokens: their ids.
        cached: tokens already in its cache.
    """

    sequence: int
    tokens: Sequence[int]
    cached: int = 0


@dataclass(frozen=True)
class Timing:
    """How long a step took.

    Attributes:
        device_ms: the forward pass and the choice of tokens, by device events (CPU: wall clock).
        wall_ms: from the call to tokens on the host.
    """

    device_ms: float
    wall_ms: float

    def without_waits(self, cpu_ms: float) -> Timing:
        """Take off the waits for a core, others on the machine caused them.

        Args:
            cpu_ms: processor time of the whole step; waits fall on its parts alike.
        """
        share = min(cpu_ms / self.wall_ms, 1.0)
        return Timing(share * self.device_ms, share * self.wall_ms)


@dataclass(frozen=True)
class _Batch:
    """A step on the device, chunks first.

    Attributes:
        sequences: numbers of the sequences.
        new: tokens each adds.
        rows: their page-table rows [S].
        decoding: those of the decodes [B].
        ids: tokens of the chunks, padding included [N].
        parts: chunks, decodes or both.
        captured: the CUDA graph that runs the step instead.
    """

    sequences: list[int]
    new: list[int]
    rows: Tensor
    decoding: Tensor
    ids: Tensor
    parts: list[Part]
    captured: Captured | None


class Runner:
    """A model, its KV cache and the kernels that were found to work.

    Attributes:
        padded: chunks of a step as one rectangle, its decodes as another; otherwise packed. May be
            changed between steps.
        cache: the KV cache.

    Args:
        model: what runs.
        device: where the model is.
        num_blocks: KV blocks.
        block_size: tokens in a block.
        padded: what the first steps are.
        graphs: decode steps as CUDA graphs, where the device and the kernel allow it.
    """

    def __init__(
        self,
        model: Transformer,
        device: Device,
        *,
        num_blocks: int,
        block_size: int = 16,
        padded: bool,
        graphs: bool = True,
    ) -> None:
        self.model, self.device, self.padded = model, device, padded
        at = device.torch_device
        self.cache = PagedCache(model.spec, num_blocks, block_size, model.dtype, at)
        self._choices = {False: choose_packed(model.spec, model.dtype, at), True: PADDED}
        self._paged, self._paged_note = choose_paged(model.spec, model.dtype, at)
        self._graphs = DecodeGraphs(self._decode, at) if graphs and self._paged else None
        self._cached: dict[int, int] = {}
        self._sampled = torch.zeros(len(self.cache.table), dtype=torch.long, device=at)

    @property
    def kernel(self) -> str:
        """Attention in use: `loop`, `varlen`, `flex` or `sdpa-padded`.

        With `+paged` where decodes read KV pages in place.
        """
        return self._choices[self.padded][0] + ("+paged" if self._paged else "")

    @property
    def kernel_note(self) -> str:
        """Why a better kernel was passed over; empty if none was."""
        return "; ".join(filter(None, [self._choices[self.padded][2], self._paged_note]))

    def hold(self, sequence: int, tokens: int) -> None:
        """Make the sequence's pages cover `tokens` tokens.

        Raises:
            OutOfBlocks: too few free pages.
            BadInput: more tokens than the model or the cache takes.
        """
        self.cache.hold(sequence, tokens)
        self._cached.setdefault(sequence, 0)

    def pretend(self, sequence: int, cached: int) -> None:
        """Hold pages and count `cached` tokens as cached; what they contain is random.

        Called again it rewinds the sequence. Raises as `hold`.
        """
        self.hold(sequence, cached)
        self._cached[sequence] = cached
        self._sampled[self.cache.row(sequence)] = 0

    def release(self, sequence: int) -> None:
        """Give the sequence's pages back."""
        self.cache.release(sequence)
        del self._cached[sequence]

    def cached(self, sequence: int) -> int:
        """Return how many tokens of a sequence are in the cache; 0 for one not held."""
        return self._cached.get(sequence, 0)

    @torch.inference_mode()
    def warm_up(self, most: int) -> None:
        """Capture the graphs of up to `most` decodes now rather than in the first such steps."""
        if self._graphs:
            self._graphs.capture(most)

    @torch.inference_mode()
    def step(
        self, chunks: Sequence[Chunk], decodes: Sequence[int]
    ) -> tuple[dict[int, int], Timing]:
        """Run one forward pass: every chunk, and one token of every sequence in `decodes`.

        A decode continues with the sequence's last token that was sampled. Pages are held as
        needed.

        Returns:
            The greedy next token of every sequence (of no meaning for a chunk that does not end
            its prompt), and the time.

        Raises:
            OutOfBlocks: too few free pages; no sequence has advanced, pages stay held.
            BadInput: the step is empty, or a chunk does not continue its sequence.
        """
        began = perf_counter()
        batch = self._prepare(chunks, decodes)
        timer = self.device.timer()
        timer.start()
        sampled = self._launch(batch)
        timer.stop()
        tokens = sampled.tolist()
        wall_ms = (perf_counter() - began) * 1e3
        self._advance(batch)
        return dict(zip(batch.sequences, tokens, strict=True)), Timing(timer.elapsed_ms(), wall_ms)

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk], decodes: Sequence[int]) -> Tensor:
        """Run a step as `step` does, without CUDA graphs.

        Returns:
            Logits [rows, vocab]: the last token of each chunk, then the decodes.
        """
        batch = self._prepare(chunks, decodes)
        logits = self._forward(batch.ids, batch.decoding, batch.parts)
        self._sample(batch.rows, logits)
        self._advance(batch)
        return logits

    def _prepare(self, chunks: Sequence[Chunk], decodes: Sequence[int]) -> _Batch:
        """Hold pages and lay the tokens out."""
        sequences = [chunk.sequence for chunk in chunks] + list(decodes)
        new = [len(chunk.tokens) for chunk in chunks] + [1] * len(decodes)
        self._check(chunks, sequences)
        cached = [self.cached(sequence) for sequence in sequences]
        for sequence, before, adds in zip(sequences, cached, new, strict=True):
            self.hold(sequence, before + adds)
        self.cache.refresh_table()
        rows = [self.cache.row(sequence) for sequence in sequences]
        n, lay_out = len(chunks), padded if self.padded else packed
        _, attention, _ = self._choices[self.padded]
        parts, captured = [], None
        if chunks:
            parts.append(lay_out(self.cache, attention, rows[:n], cached[:n], new[:n]))
        if decodes and self._paged:
            inputs = self._paged_inputs(rows[n:], cached[n:])
            parts.append(in_pages(self.cache, self._paged, inputs))
            if self._graphs and not chunks:
                captured = self._graphs.prepare(inputs)
        elif decodes:
            parts.append(lay_out(self.cache, attention, rows[n:], cached[n:], new[n:]))
        places = torch.tensor(rows, device=self.device.torch_device)
        ids = self._ids(chunks)
        return _Batch(sequences, new, places, places[n:], ids, parts, captured)

    def _paged_inputs(self, rows: list[int], cached: list[int]) -> Tensor:
        """Return rows, positions and keys to read of decodes [3, B]."""
        longest = max(cached) + 1
        spans = [longest if self.padded else before + 1 for before in cached]
        return torch.tensor([rows, cached, spans], device=self.device.torch_device)

    def _check(self, chunks: Sequence[Chunk], sequences: list[int]) -> None:
        if not sequences:
            raise BadInput("a step without a chunk or a decode")
        if len(set(sequences)) < len(sequences):
            raise BadInput(f"a sequence is twice in one step: {sorted(sequences)}")
        for chunk in chunks:
            cached = self.cached(chunk.sequence)
            if chunk.cached != cached or not chunk.tokens:
                raise BadInput(
                    f"sequence {chunk.sequence}: a chunk of {len(chunk.tokens)} tokens after "
                    f"{chunk.cached}; it has {cached} cached, and a chunk has at least one"
                )

    def _ids(self, chunks: Sequence[Chunk]) -> Tensor:
        """Return the ids of all chunks, each filled up to the longest in a padded batch."""
        width = max((len(chunk.tokens) for chunk in chunks), default=0) if self.padded else 0
        ids: list[int] = []
        for chunk in chunks:
            ids.extend(chunk.tokens)
            ids.extend([0] * (width - len(chunk.tokens)))
        return torch.tensor(ids, dtype=torch.long, device=self.device.torch_device)

    def _launch(self, batch: _Batch) -> Tensor:
        """Return the sampled tokens, in the order of the batch's sequences."""
        if batch.captured is not None:
            batch.captured.graph.replay()
            return batch.captured.tokens[: len(batch.sequences)]
        return self._sample(batch.rows, self._forward(batch.ids, batch.decoding, batch.parts))

    def _forward(self, ids: Tensor, decoding: Tensor, parts: Sequence[Part]) -> Tensor:
        """Return logits of the last token of every sequence.

        Args:
            ids: tokens of the chunks.
            decoding: page-table rows of the decodes, which go on with their sampled tokens.
            parts: the chunks, then the decodes.
        """
        cache, sizes = self.cache, [len(part.positions) for part in parts]
        positions = torch.cat([part.positions for part in parts])
        slots = cache.slots(torch.cat([part.rows for part in parts]), positions)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.keys[layer][slots] = k
            cache.values[layer][slots] = v
            each = zip(parts, *(torch.split(x, sizes) for x in (q, k, v)), strict=True)
            return torch.cat([part.attention(layer, *qkv) for part, *qkv in each])

        hidden = self.model.forward(torch.cat([ids, self._sampled[decoding]]), positions, attend)
        ends = [part.ends + sum(sizes[:number]) for number, part in enumerate(parts)]
        return self.model.logits(hidden[torch.cat(ends)])

    def _decode(self, inputs: Tensor) -> Tensor:
        """Decode from pages: what a CUDA graph captures. As `DecodeGraphs` describes it."""
        assert self._paged is not None
        part = in_pages(self.cache, self._paged, inputs)
        return self._sample(part.rows, self._forward(inputs[0, :0], part.rows, [part]))

    def _sample(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Return the greedy tokens and remember them by table row."""
        tokens = logits.argmax(-1)
        self._sampled[rows] = tokens
        return tokens

    def _advance(self, batch: _Batch) -> None:
        for sequence, adds in zip(batch.sequences, batch.new, strict=True):
            self._cached[sequence] += adds
