"""DistServe's placement search: how many GPUs each phase gets, and how they work together.

Everything rests on one attainment function: the configured experiment at another rate and with
other pools, on the same requests (common random numbers), averaged over its replications. The
goodput of a layout is the highest rate at which it reaches the target, found by bisection.

* Algorithm 1, `high` (fast links between nodes): each phase alone. Prefill is judged by TTFT,
  decode by TPOT, each beside an ideal other phase. The best layout per GPU is replicated
  ceil(R / goodput) times.
* Algorithm 2, `low` (slow links): pairs of a prefill and a decode instance that share a node,
  judged together by the share of requests that meet every bound. The best pair per GPU is
  replicated.

Deviations and assumptions: the authors' code runs 1,000 Poisson requests with seed 0; here the
config says what runs. A fixed number of requests arrives faster at a higher rate, there as here,
and a short run flatters rates that the queue outgrows only later: a note says so. The ideal other
phase is `AMPLE_INSTANCES` instances of the largest layout without a pipeline (if one fits), so that
nobody waits for it; the paper simulates one phase without the other. `tp` is one of 1, 2, 4, 8 and
`pp` 1 or 2 (the paper: every divisor); a pipeline is priced as in `sim.study.build`. In `low`, no
pipeline crosses nodes. Both phases run on `cluster.gpu` over `cluster.link`, whatever the algorithm
assumes about links. `high` does not judge both phases together: the chosen placement is run once at
the rate asked for, and its attainment reported.

Complexity: layouts (`high`) or pairs of layouts (`low`) * log2(range / width) runs.

Reference: Zhong et al., "DistServe", OSDI 2024, arXiv:2401.09670, section 4; code
LLMServe/DistServe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from policies import load, names
from sim.costs.catalogue import gpu_named, model_named
from sim.costs.memory import TP_CHOICES
from sim.study.build import build
from sim.study.config import Experiment, PolicyChoice, PoolConfig
from sim.study.policy_facts import policy_facts
from sim.study.run import StudyResult, requests_of, run
from sim.types import BadInput, Deadlock

PP_CHOICES = (1, 2)
"""Pipeline stages tried."""

GPUS_PER_NODE = 8
"""Of DistServe's cluster (spec: distserve.md section 4)."""

AMPLE_INSTANCES = 256
"""Instances of the phase that is not judged. At the rates tried by default each gets at most one
request per second; on OPT-13B 16 instances already give the same attainment to 0.001."""

CHECKED_INSTANCES = 1024
"""A chosen placement of more instances is not run."""

MAX_STEPS_OF_WIDTH = 1e6
"""The range of a bisection is at most so many widths."""

SHORT_S = 60.0
"""Arrivals that last less say little about a queue that grows (our choice)."""

ROUNDING = 1e-9
"""A mean of shares this far below the target reaches it."""

DEFAULT_POLICY = "distserve"

Phase = Literal["prefill", "decode", "both"]
Pools = Sequence[PoolConfig]
Progress = Callable[[int, int | None], None]
"""Called with layouts tried and layouts in all."""


@dataclass(frozen=True)
class Search:
    """What is searched for, and how finely.

    Attributes:
        rate_per_s: requests per second that the placement has to serve (R).
        algorithm: `high` or `low`: fast or slow links between nodes.
        attainment: share of requests that has to meet the bounds.
        gpus_per_node: GPUs joined by fast links.
        max_gpu_rate_per_s: upper end of the bisection, requests per second and GPU.
        width_per_s: the bisection ends at this width, requests per second and GPU.
    """

    rate_per_s: float
    algorithm: Literal["high", "low"] = "high"
    attainment: float = 0.9
    gpus_per_node: int = GPUS_PER_NODE
    max_gpu_rate_per_s: float = 16.0
    width_per_s: float = 0.5

    def __post_init__(self) -> None:
        if self.algorithm not in ("high", "low"):
            raise BadInput(f"--algorithm: {self.algorithm!r}; valid: high, low")
        if not 0 < self.rate_per_s < math.inf:
            raise BadInput(f"--rate: {self.rate_per_s:g} requests/s; valid: above 0")
        if not 0 < self.attainment <= 1:
            raise BadInput(f"--attainment: {self.attainment:g}; valid: above 0, up to 1")
        if self.gpus_per_node < 1:
            raise BadInput(f"--gpus-per-node: {self.gpus_per_node}; valid: 1 or more")
        high, width = self.max_gpu_rate_per_s, self.width_per_s
        if not 0 < high < math.inf:
            raise BadInput(f"--max-rate: {high:g} requests/s per GPU; valid: above 0")
        if not high / MAX_STEPS_OF_WIDTH <= width < high:
            least = high / MAX_STEPS_OF_WIDTH
            raise BadInput(f"--width: {width:g}; valid: {least:g} to below --max-rate {high:g}")


@dataclass(frozen=True)
class Layout:
    """One instance.

    Attributes:
        tp: tensor-parallel degree.
        pp: pipeline stages.
    """

    tp: int
    pp: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of the instance."""
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"tp {self.tp}" + (f" pp {self.pp}" if self.pp > 1 else "")

    def pool(self, role: Literal["prefill", "decode"], instances: int = 1) -> PoolConfig:
        """Return `instances` of this layout."""
        return PoolConfig(role=role, instances=instances, tp=self.tp, pp=self.pp, gpu=None)


@dataclass(frozen=True)
class Attainment:
    """Shares of requests that met the TTFT bound, the TPOT bound, and every bound."""

    ttft: float
    tpot: float
    total: float


AttainmentOf = Callable[[float, Pools], Attainment]
"""From requests per second and pools."""


@dataclass(frozen=True)
class Candidate:
    """A layout that was tried.

    Attributes:
        phase: what it was judged by.
        prefill: its prefill instance; None where only decode was judged.
        decode: its decode instance; None where only prefill was judged.
        goodput_per_gpu: highest requests per second and GPU at the target; 0: none was found.
        at_bound: every rate tried was reached: the goodput is at least this.
    """

    phase: Phase
    prefill: Layout | None
    decode: Layout | None
    goodput_per_gpu: float
    at_bound: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of the instances."""
        return sum(layout.gpus for layout in (self.prefill, self.decode) if layout)

    @property
    def goodput_per_s(self) -> float:
        """Requests per second of the instances."""
        return self.goodput_per_gpu * self.gpus

    def replicas(self, rate_per_s: float) -> int:
        """Return how many serve a rate: ceil(rate / goodput), but for rounding errors."""
        return math.ceil(round(rate_per_s / self.goodput_per_s, 9))

    def rank(self) -> tuple[float, ...]:
        """Return what sorts the best first: goodput per GPU, then few GPUs, then few stages."""
        layouts = [layout for layout in (self.prefill, self.decode) if layout]
        stages = sum(layout.pp for layout in layouts)
        return (-self.goodput_per_gpu, self.gpus, stages, *(layout.tp for layout in layouts))


@dataclass(frozen=True)
class Skipped:
    """A layout that was not tried, or failed in trying, and why."""

    layout: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """What to deploy.

    Attributes:
        prefill: of each prefill instance.
        decode: of each decode instance.
        prefill_instances: how many.
        decode_instances: how many.
    """

    prefill: Layout
    decode: Layout
    prefill_instances: int
    decode_instances: int

    @property
    def gpus(self) -> int:
        """GPUs of all instances."""
        return self.prefill.gpus * self.prefill_instances + self.decode.gpus * self.decode_instances

    @property
    def pools(self) -> tuple[PoolConfig, PoolConfig]:
        """What to set as `cluster.pools`."""
        return (
            self.prefill.pool("prefill", self.prefill_instances),
            self.decode.pool("decode", self.decode_instances),
        )


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        search: what was asked for.
        candidates: what was tried, in order.
        skipped: what was not.
        placement: the choice; None if no layout reaches the target at any rate tried.
        check: attainment of the placement at the rate asked for; None if it was not run.
        notes: what a reader must be told.
    """

    search: Search
    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]
    placement: Placement | None
    check: Attainment | None
    notes: tuple[str, ...]


# -- the search ---------------------------------------------------------------------------------


def place(experiment: Experiment, search: Search, progress: Progress | None = None) -> Found:
    """Search a placement for an experiment; its pools and its rate do not matter.

    Args:
        experiment: workload, bounds, GPU, model and policy.
        search: the rate to serve, the algorithm and the target.
        progress: told how far it is.

    Raises:
        BadInput: the experiment has no bound to judge by, no rate to vary, or no layout fits.
    """
    experiment = searchable(experiment)
    layouts, skipped = fitting(experiment, search)
    if not layouts:
        reason = skipped[0].reason
        raise BadInput(f"no layout can be tried: {len(skipped)} skipped, first: {reason}")
    attainment = attainment_of(experiment)
    tasks = _pairs(layouts) if search.algorithm == "low" else _phases(layouts)
    allowed, oversized = _within_node(tasks, search)
    candidates, failed = judged(attainment, allowed, layouts, search, progress)
    placement = chosen(candidates, search)
    check, notes = None, _notes(candidates, placement, experiment)
    if placement and placement.prefill_instances + placement.decode_instances <= CHECKED_INSTANCES:
        result = run(at(experiment, search.rate_per_s, placement.pools))
        check, notes = _average(result), (*result.notes, *notes)
    everything = (*skipped, *oversized, *failed)
    return Found(search, tuple(candidates), everything, placement, check, tuple(notes))


def bisect(reached: Callable[[float], bool], high: float, width: float) -> tuple[float, bool]:
    """Return the highest rate in [0, high] that is reached, to a width, from below.

    Args:
        reached: whether a rate is; true up to some rate, false from there on.
        high: upper end, itself not tried.
        width: the search ends when the rate is known so closely.

    Returns:
        The highest rate tried that was reached (0: none), and whether all were.
    """
    low, all_reached = 0.0, True
    while high - low > width:
        middle = (low + high) / 2
        if reached(middle):
            low = middle
        else:
            high, all_reached = middle, False
    return low, all_reached


def judged(
    attainment: AttainmentOf,
    tasks: Sequence[Candidate],
    layouts: Sequence[Layout],
    search: Search,
    progress: Progress | None = None,
) -> tuple[list[Candidate], list[Skipped]]:
    """Return the tasks with their goodputs, and those that could not be run.

    Args:
        attainment: of a rate and pools.
        tasks: what to try; their goodputs do not matter.
        layouts: those that fit; the largest is what the ideal other phase is made of.
        search: target and bounds of the bisection.
        progress: told how far it is.
    """
    ideal = max(layouts, key=lambda layout: (layout.pp == 1, layout.gpus))
    done: list[Candidate] = []
    failed: list[Skipped] = []
    for number, task in enumerate(tasks, start=1):
        try:
            done.append(_judge(attainment, task, ideal, search))
        except (BadInput, Deadlock) as error:
            failed.append(Skipped(_name(task), str(error)))
        if progress is not None:
            progress(number, len(tasks))
    return done, failed


def _judge(attainment: AttainmentOf, task: Candidate, ideal: Layout, search: Search) -> Candidate:
    prefill, decode = task.prefill, task.decode
    pools = (
        prefill.pool("prefill") if prefill else ideal.pool("prefill", AMPLE_INSTANCES),
        decode.pool("decode") if decode else ideal.pool("decode", AMPLE_INSTANCES),
    )

    def reached(gpu_rate_per_s: float) -> bool:
        shares = attainment(gpu_rate_per_s * task.gpus, pools)
        share = {"prefill": shares.ttft, "decode": shares.tpot, "both": shares.total}[task.phase]
        return share >= search.attainment - ROUNDING

    goodput, at_bound = bisect(reached, search.max_gpu_rate_per_s, search.width_per_s)
    return replace(task, goodput_per_gpu=goodput, at_bound=at_bound)


def best(candidates: Iterable[Candidate], phase: Phase) -> Candidate | None:
    """Return the candidate of a phase with the highest goodput per GPU; None: all have none."""
    able = [c for c in candidates if c.phase == phase and c.goodput_per_gpu > 0]
    return min(able, key=Candidate.rank, default=None)


def chosen(candidates: Sequence[Candidate], search: Search) -> Placement | None:
    """Return the best placement; None if a phase has none.

    Args:
        candidates: what was tried.
        search: the rate to serve.
    """
    pair = best(candidates, "both")
    prefill = pair or best(candidates, "prefill")
    decode = pair or best(candidates, "decode")
    if prefill is None or decode is None or prefill.prefill is None or decode.decode is None:
        return None
    rate = search.rate_per_s
    return Placement(prefill.prefill, decode.decode, prefill.replicas(rate), decode.replicas(rate))


# -- layouts ------------------------------------------------------------------------------------


def fitting(experiment: Experiment, search: Search) -> tuple[list[Layout], list[Skipped]]:
    """Return the layouts of one instance that can be, and the others with their reasons."""
    model_named(experiment.cluster.model), gpu_named(experiment.cluster.gpu)
    fits: list[Layout] = []
    skipped: list[Skipped] = []
    for tp, pp in product(TP_CHOICES, PP_CHOICES):
        layout = Layout(tp, pp)
        reason = _obstacle(experiment, search, layout)
        if reason is None:
            fits.append(layout)
        else:
            skipped.append(Skipped(str(layout), reason))
    return fits, skipped


def _obstacle(experiment: Experiment, search: Search, layout: Layout) -> str | None:
    count, per_node = experiment.cluster.count, search.gpus_per_node
    if layout.tp > per_node:
        return f"tp does not cross nodes, which have {per_node} GPUs"
    if layout.gpus > count:
        return f"an instance has more GPUs than the cluster, cluster.count is {count}"
    pools = (layout.pool("prefill"), layout.pool("decode"))
    try:
        build(at(experiment, 1.0, pools), experiment.policies[0])
    except BadInput as error:
        return str(error)
    return None


def _phases(layouts: Sequence[Layout]) -> list[Candidate]:
    prefill = [Candidate("prefill", layout, None, 0.0) for layout in layouts]
    return prefill + [Candidate("decode", None, layout, 0.0) for layout in layouts]


def _pairs(layouts: Sequence[Layout]) -> list[Candidate]:
    return [Candidate("both", one, two, 0.0) for one, two in product(layouts, repeat=2)]


def _within_node(
    tasks: Sequence[Candidate], search: Search
) -> tuple[list[Candidate], list[Skipped]]:
    """Return the tasks whose pairs share a node, and the others."""
    reason = f"more than the {search.gpus_per_node} GPUs of a node"
    over = [t for t in tasks if t.phase == "both" and t.gpus > search.gpus_per_node]
    return [t for t in tasks if t not in over], [Skipped(_name(t), reason) for t in over]


def _name(task: Candidate) -> str:
    sides = (("prefill", task.prefill), ("decode", task.decode))
    return " + ".join(f"{role} {layout}" for role, layout in sides if layout)


# -- the attainment function --------------------------------------------------------------------


def attainment_of(experiment: Experiment) -> AttainmentOf:
    """Return the attainment of an experiment by rate and pools."""
    return lambda rate_per_s, pools: _average(run(at(experiment, rate_per_s, pools)))


def _average(result: StudyResult) -> Attainment:
    summary = result.summary
    return Attainment(
        summary["slo_attainment_ttft"], summary["slo_attainment_tpot"], summary["slo_attainment"]
    )


def at(experiment: Experiment, rate_per_s: float, pools: Pools) -> Experiment:
    """Return the experiment at another rate, on other pools and as many GPUs as they need."""
    gpus = sum(pool.instances * pool.tp * pool.pp for pool in pools)
    cluster = experiment.cluster.model_copy(update={"pools": tuple(pools), "count": gpus})
    arrivals = experiment.workload.arrivals
    assert arrivals is not None, "searchable() has seen to it"
    rated = arrivals.model_copy(update={"rate": rate_per_s})
    workload = experiment.workload.model_copy(update={"arrivals": rated})
    return replace(experiment, cluster=cluster, workload=workload)


def configured_rate_per_s(experiment: Experiment) -> float:
    """Return the rate of the config, requests per second; `BadInput` if it has none."""
    rate: float | None = getattr(experiment.workload.arrivals, "rate", None)
    if rate is None:
        where = experiment.origins.where("workload")
        raise BadInput(f"{where}: workload.arrivals.rate is missing; set it, or give --rate")
    return rate


def searchable(experiment: Experiment) -> Experiment:
    """Return the experiment with the policy to place.

    Raises:
        BadInput: a bound is missing, the rate cannot be varied, requests cannot be drawn, or the
            policy has no separate prefill and decode instances.
    """
    where = experiment.origins.where
    for key in ("ttft_ms", "tpot_ms"):
        if getattr(experiment.slo, key) is None:
            raise BadInput(
                f"{where('slo')}: slo.{key} is missing; a placement is judged by slo.ttft_ms "
                "and slo.tpot_ms"
            )
    process = getattr(experiment.workload.arrivals, "process", None)
    valid = ("poisson", "gamma", "constant", "burst", "diurnal")
    if process not in valid:
        raise BadInput(
            f"{where('workload.arrivals')}: workload.arrivals.process: {process or 'none'} has no "
            f"rate to vary; valid for a placement: {', '.join(valid)}"
        )
    if experiment.run.warmup_s and experiment.workload.duration_s is None:
        raise BadInput(
            f"{where('run.warmup_s')}: run.warmup_s {experiment.run.warmup_s:g}: at other rates "
            "the requests arrive sooner; set it to 0, or give workload.duration_s"
        )
    requests_of(experiment, 0)
    return replace(experiment, policies=(_policy(experiment),))


def _policy(experiment: Experiment) -> PolicyChoice:
    """Return the only policy, or DistServe's of several."""
    where = experiment.origins.where("policy")
    listed = experiment.policies
    named = [choice for choice in listed if choice.name == DEFAULT_POLICY]
    if len(listed) > 1 and len(named) != 1:
        raise BadInput(
            f"{where}: policy: a placement is for one policy, the config lists {len(listed)} "
            f"({', '.join(choice.label for choice in listed)}); use policy={DEFAULT_POLICY}"
        )
    choice = named[0] if len(listed) > 1 else listed[0]
    if not _splits(choice.name):
        valid = ", ".join(name for name in names() if _splits(name))
        raise BadInput(
            f"{where}: policy: {choice.name!r} has no prefill and decode instances to place; "
            f"valid: {valid}"
        )
    return choice


def _splits(name: str) -> bool:
    return {"prefill", "decode"} <= set(policy_facts(load(name)).roles.split("+"))


def _notes(
    candidates: Sequence[Candidate],
    placement: Placement | None,
    experiment: Experiment,
) -> tuple[str, ...]:
    notes = []
    bound = [c for c in candidates if c.at_bound]
    if bound:
        notes.append(
            f"{len(bound)} layouts reach the target at every rate tried: their goodputs are lower "
            "bounds; raise --max-rate"
        )
    fastest = max((c.goodput_per_s for c in candidates), default=0.0)
    requests = experiment.workload.num_requests
    if requests and fastest * SHORT_S > requests:
        notes.append(
            f"at {fastest:g} requests/s, the highest goodput, {requests} requests arrive within "
            f"{requests / fastest:.1f} s: so short a run flatters it; raise workload.num_requests"
        )
    count = experiment.cluster.count
    if placement and placement.gpus > count:
        notes.append(f"the placement has {placement.gpus} GPUs, cluster.count is {count}")
    return tuple(notes)
