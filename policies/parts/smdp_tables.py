"""Which table applies: laws from cost models, tables by load band, the load as it is seen."""

from __future__ import annotations

from functools import lru_cache
from math import exp, log2

from policies.parts.smdp_model import BatchQueue, ServiceLaw, law_of
from policies.parts.smdp_solver import Table, control_limit, fixed_batches, solve
from sim.types import FS_PER_S, CostModel, Fifo, N, Request

LOGISTIC_SLOPE = 1.0
"""Steepness of the power curve per doubling of the batch (`decode_watts`)."""


class Power:
    """Power of a GPU (or of all of an instance) by phase.

    Args:
        prefill_w: in prompt steps.
        decode_min_w: of a decode step of one request.
        decode_max_w: of a decode step of very many.
        middle: log2 of the batch half way between.
    """

    __slots__ = ("decode_max_w", "decode_min_w", "middle", "prefill_w")

    def __init__(
        self, prefill_w: float, decode_min_w: float, decode_max_w: float, middle: float
    ) -> None:
        self.prefill_w = prefill_w
        self.decode_min_w = decode_min_w
        self.decode_max_w = decode_max_w
        self.middle = middle

    def decode_watts(self, batch: N) -> float:
        """Return the power of a decode step: a logistic curve over log2 of the batch."""
        rise = 1.0 + exp(-LOGISTIC_SLOPE * (log2(batch) - self.middle))
        return self.decode_min_w + (self.decode_max_w - self.decode_min_w) / rise


def prefill_seconds(cost: CostModel, batch: N, input_tokens: N) -> float:
    """Return the time to prefill `batch` prompts of the mean length."""
    new = batch * input_tokens
    return cost.step(batch, new, new, new * input_tokens, 0, 0) / FS_PER_S


def decode_seconds(cost: CostModel, batch: N, input_tokens: N, output_tokens: N) -> float:
    """Return the time of a static batch after its prefill.

    Its longest output is taken as the mean times 1 + 1/2 + ... + 1/batch, the mean maximum of
    exponential lengths; every step as one half way.
    """
    harmonic = sum(1.0 / n for n in range(1, batch + 1))
    steps = output_tokens * harmonic - 1.0
    if steps <= 0:
        return 0.0
    kv = batch * (input_tokens + steps / 2)
    piece = cost.decode(batch)
    while piece.next is not None and kv >= piece.kv_end:
        piece = piece.next
    return steps * (piece.base_fs + piece.slope_fs * kv) / FS_PER_S


class LawMaker:
    """Makes service laws: one that is given, or what a cost model says of mean requests.

    Args:
        given: the law; None: from the cost model.
        max_batch: largest batch of a law from a cost model.
        input_tokens: mean prompt.
        output_tokens: mean output of a static batch; 0: prompts only.
        power: of the instance.
        stages: of the service time (see `ServiceLaw`).
    """

    def __init__(
        self,
        given: ServiceLaw | None,
        max_batch: N,
        input_tokens: N,
        output_tokens: N,
        power: Power,
        stages: N,
    ) -> None:
        self.given = given
        self.max_batch = max_batch
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.power = power
        self.stages = stages

    def law(self, cost: CostModel) -> ServiceLaw:
        """Return the law of an instance."""
        if self.given is not None:
            return self.given
        prompt, output, power = self.input_tokens, self.output_tokens, self.power
        sizes = range(1, self.max_batch + 1)
        prefill = [prefill_seconds(cost, b, prompt) for b in sizes]
        decode = [decode_seconds(cost, b, prompt, output) if output else 0.0 for b in sizes]
        return law_of(
            self.max_batch,
            lambda b: prefill[b - 1] + decode[b - 1],
            lambda b: prefill[b - 1] * power.prefill_w + decode[b - 1] * power.decode_watts(b),
            self.stages,
        )


class Solver:
    """How tables are made.

    Args:
        rule: `smdp`, `greedy`, `fixed` or `limit`.
        batch: of `fixed`, the threshold of `limit`.
        power_weight: seconds of mean response that a watt is worth.
        max_waiting: largest state.
        overflow_cost_s: abstract cost of the states beyond.
        tolerance_s: of the relative values.
    """

    def __init__(
        self,
        rule: str,
        batch: N,
        power_weight: float,
        max_waiting: N,
        overflow_cost_s: float,
        tolerance_s: float,
    ) -> None:
        self.rule = rule
        self.batch = batch
        self.power_weight = power_weight
        self.max_waiting = max_waiting
        self.overflow_cost_s = overflow_cost_s
        self.tolerance_s = tolerance_s

    def process(self, law: ServiceLaw, rate: float) -> BatchQueue:
        """Return the decision process of an arrival rate."""
        return BatchQueue(law, rate, self.power_weight, self.max_waiting, self.overflow_cost_s)

    def table(self, law: ServiceLaw, rate: float) -> Table:
        """Return the table of a law at an arrival rate."""
        size = self.max_waiting + 2
        if self.rule == "fixed":
            return fixed_batches(self.batch, size)
        if self.rule != "smdp":
            return control_limit(self.batch if self.rule == "limit" else 1, law.max_batch, size)
        return _solved(
            law.service_s,
            law.energy_j,
            law.stages,
            rate,
            self.power_weight,
            self.max_waiting,
            self.overflow_cost_s,
            self.tolerance_s,
        )


@lru_cache(maxsize=1024)
def _solved(
    service_s: tuple[float, ...],
    energy_j: tuple[float, ...],
    stages: N,
    rate: float,
    power_weight: float,
    max_waiting: N,
    overflow_cost_s: float,
    tolerance_s: float,
) -> Table:
    """Return a solved table; replications and instances ask for the same ones."""
    law = ServiceLaw(service_s, energy_j, stages)
    queue = BatchQueue(law, rate, power_weight, max_waiting, overflow_cost_s)
    return solve(queue, tolerance_s)


class Bands:
    """The tables of one law, one per load band.

    Bands are centred at the loads 1/(n+1), 2/(n+1), ... n/(n+1); a load beyond the outer ones gets
    the nearest. Tables are made when a band is first met.

    Args:
        law: of the server.
        solver: makes the tables.
        count: how many bands.
    """

    def __init__(self, law: ServiceLaw, solver: Solver, count: N) -> None:
        self.law = law
        self.solver = solver
        self.count = count
        self._tables: dict[N, Table] = {}

    def load(self, band: N) -> float:
        """Return the load at the centre of a band, counted from 0."""
        return (band + 1) / (self.count + 1)

    def next_band(self, load: float, band: N) -> N:
        """Return the band for a load; `band` (-1: none) is kept while the load is near.

        It is near while no other band's centre lies between: the hysteresis of one band.
        """
        place = load * (self.count + 1) - 1
        if band >= 0 and abs(place - band) < 1:
            return band
        return min(max(round(min(place, self.count)), 0), self.count - 1)

    def beyond(self, load: float) -> N:
        """Return -1, 1: a load is below, above all bands by more than half of their distance."""
        place = load * (self.count + 1)
        return (place > self.count + 0.5) - (place < 0.5)

    def table(self, band: N) -> Table:
        """Return the table of a band."""
        table = self._tables.get(band)
        if table is None:
            rate = self.load(band) * self.law.most_per_s
            table = self._tables[band] = self.solver.table(self.law, rate)
        return table


class TableBook:
    """Laws and tables of a run: what all queues of a policy share.

    Args:
        maker: of service laws.
        solver: of tables.
        bands: load bands.
        smoothing: weight of the last gap between arrivals in the mean gap.
        gap_s: mean gap between arrivals; 0: estimated.
    """

    def __init__(
        self, maker: LawMaker, solver: Solver, bands: N, smoothing: float, gap_s: float
    ) -> None:
        self.maker = maker
        self.solver = solver
        self.bands = bands
        self.smoothing = smoothing
        self.gap_s = gap_s
        self.below: N = 0
        """Arrivals at a load that is below all bands: the lowest one's table is used."""
        self.above: N = 0

    def count(self, beyond: N) -> None:
        """Count an arrival by where its load lies (`Bands.beyond`)."""
        self.below += beyond < 0
        self.above += beyond > 0

    def bands_of(self, cost: CostModel) -> Bands:
        """Return the tables of an instance."""
        return Bands(self.maker.law(cost), self.solver, self.bands)


class RatedQueue(Fifo):
    """First come first served; it sees the arrival rate, and holds the table that goes with it.

    The mean gap between arrivals is smoothed exponentially, starting as a plain mean. Before the
    second arrival the band is the lowest one.

    Args:
        book: laws and tables.
    """

    def __init__(self, book: TableBook) -> None:
        super().__init__()
        self.book = book
        self.band: N = -1
        self.gap_s = 0.0
        self.gaps: N = 0
        self._last_s = -1.0
        self._bands: Bands | None = None
        self._table: Table = ()

    def push(self, request: Request) -> None:
        """Add a newly arrived request, and take note of its gap to the last one."""
        super().push(request)
        if self.book.gap_s or request.home is None:
            return
        if self._last_s >= 0:
            self.gaps += 1
            weight = max(self.book.smoothing, 1.0 / self.gaps)
            self.gap_s += weight * (request.arrival_s - self._last_s - self.gap_s)
            self._follow(request.home.cost)
        self._last_s = request.arrival_s

    def _follow(self, cost: CostModel) -> None:
        """Move to the band of the rate as it is now."""
        bands = self.bands(cost)
        load = bands.law.load(1.0 / self.gap_s) if self.gap_s > 0 else 1.0
        self.book.count(bands.beyond(load))
        band = bands.next_band(load, self.band)
        if band != self.band:
            self.band = band
            self._table = ()

    def bands(self, cost: CostModel) -> Bands:
        """Return the tables of the instance that the queue belongs to."""
        if self._bands is None:
            self._bands = self.book.bands_of(cost)
        return self._bands

    def table(self, cost: CostModel) -> Table:
        """Return the table to go by now."""
        if not self._table:
            bands = self.bands(cost)
            rate = 1.0 / self.book.gap_s if self.book.gap_s else 0.0
            if bands.law.load(rate) >= 1.0:  # no table is for that: the highest band's
                self.band = bands.count - 1
                self.book.count(1)
            elif rate:
                self._table = bands.solver.table(bands.law, rate)
                return self._table
            self._table = bands.table(max(self.band, 0))
        return self._table
