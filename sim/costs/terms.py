"""The terms of one step's latency (`spec/costs.md` section 1), each a small pure object.

    t_step = host + max(launch, g(T) + h(S)
           + layers * [ pre(n, sum(l+p), sum(l), sum(l*(l+2p))) + m * dec(B, K) ]
           + 2 * layers * allreduce(T * hidden * bytes))

for n chunks (l_i new tokens, p_i cached before) and B decodes that hold K cached tokens;
S = n + B rows need logits, T = sum(l) + B tokens pass the dense layers; m = 1 in a step without a
chunk, else gamma; launch is 0 in a step without a chunk, which a graph runs, else the time the host
takes to start the kernels. g, h and allreduce are `Curve`s.

The objects know no unit: a result has the unit of the coefficients. `StepCost` gives them integer
femtoseconds, so attention terms are exact integers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from sim.types import N


class Curve:
    """A piecewise-linear function: from `starts[i]` on it is `bases[i] + slopes[i]*x`.

    The first piece also holds below its start, the last one for ever. Pieces need not meet: a
    coefficient that switches at a size is a jump.
    """

    __slots__ = ("bases", "slopes", "starts")

    def __init__(
        self, starts: Sequence[float], bases: Sequence[float], slopes: Sequence[float]
    ) -> None:
        self.starts = list(starts)
        self.bases = list(bases)
        self.slopes = list(slopes)

    @classmethod
    def through(cls, xs: Sequence[float], ys: Sequence[float]) -> Curve:
        """Return the curve through the knots, its first and last segments extended.

        One knot is a constant. A measured table is the same thing with more knots.
        """
        if len(xs) == 1:
            return cls(xs, ys, [0.0])
        pairs = zip(xs, ys, xs[1:], ys[1:], strict=False)
        slopes = [(y1 - y0) / (x1 - x0) for x0, y0, x1, y1 in pairs]
        bases = [y - slope * x for x, y, slope in zip(xs, ys, slopes, strict=False)]
        return cls(xs[:-1], bases, slopes)

    def at(self, x: float) -> float:
        """Return the value at `x`."""
        i = max(0, bisect_right(self.starts, x) - 1)
        return self.bases[i] + self.slopes[i] * x


class Host:
    """Work of the engine's process: `step + seq*S + token*(sum(l) + K)`, and `prefill_step`.

    `prefill_step` is paid by steps that hold a chunk only. `token` prices handing the token lists
    to the worker, prompts and contexts alike (DistServe's Ray call); zero for most engines.
    """

    __slots__ = ("prefill_step", "seq", "step", "token")

    def __init__(self, step: int, prefill_step: int, seq: int, token: int) -> None:
        self.step = step
        self.prefill_step = prefill_step
        self.seq = seq
        self.token = token

    def of(self, rows: N, holds_chunk: bool, tokens: N = 0) -> int:
        """Price a step of `rows` = S rows and `tokens` = sum(l) + K tokens."""
        total = self.step + self.seq * rows + self.token * tokens
        return total + self.prefill_step if holds_chunk else total


class PrefillAttention:
    """Attention of all chunks of a step together: the slower of reading KV and computing.

        pre = max( read_base + read_token*sum(l+p),
                   base + chunk*n + token*sum(l) + quad*sum(l*(l+2p)) )

    The kernel is launched once for all chunks, so the constants are per step, and the maximum is
    taken once per step: a maximum per chunk overcharges batches of short prompts.
    """

    __slots__ = ("base", "chunk", "quad", "read_base", "read_token", "token")

    def __init__(
        self, read_base: int, read_token: int, base: int, chunk: int, token: int, quad: int
    ) -> None:
        self.read_base = read_base
        self.read_token = read_token
        self.base = base
        self.chunk = chunk
        self.token = token
        self.quad = quad

    def of(self, chunks: N, context: N, new: N, quad: N) -> int:
        """Price `chunks` chunks with sum(l+p) = context, sum(l) = new, sum(l*(l+2p)) = quad."""
        read = self.read_base + self.read_token * context
        compute = self.base + self.chunk * chunks + self.token * new + self.quad * quad
        return read if read > compute else compute


class DecodeAttention:
    """Attention of the decodes, affine in the cached tokens: `base + seq*B + kv*K`."""

    __slots__ = ("base", "kv", "seq")

    def __init__(self, base: int, seq: int, kv: int) -> None:
        self.base = base
        self.seq = seq
        self.kv = kv

    def of(self, batch: N, kv: N) -> int:
        """Price `batch` decodes that hold `kv` cached tokens."""
        return self.base + self.seq * batch + self.kv * kv


class DecodeRows:
    """Decode attention with coefficients that switch at batch sizes (batch 1 its own row)."""

    __slots__ = ("_rows", "_starts")

    def __init__(self, starts: Sequence[N], rows: Sequence[DecodeAttention]) -> None:
        self._starts = list(starts)
        self._rows = list(rows)

    def row(self, batch: N) -> DecodeAttention:
        """Return the coefficients that hold for `batch` decodes."""
        return self._rows[max(0, bisect_right(self._starts, batch) - 1)]
