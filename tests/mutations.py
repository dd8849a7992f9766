"""The deliberate bugs that `make mutate` plants in the engine, and the tests that catch them."""

from __future__ import annotations

from dataclasses import dataclass

PREEMPTION = "tests/golden/test_golden_preemption.py"
STEPS = "tests/golden/test_golden_steps.py"
STATIC = "tests/golden/test_golden_static.py"
LEAVING = "tests/golden/test_golden_leaving.py"
ENGINE_UNIT = "tests/unit/test_core_engine.py"
FAILURES = "tests/golden/test_golden_failures.py"
ASYNC = "tests/golden/test_golden_async.py"
SHARED = "tests/golden/test_golden_shared_queue.py"
SHARED_UNIT = "tests/unit/test_core_shared_queue.py"
TRANSFER = "tests/golden/test_golden_transfer.py"
SPLITWISE = "tests/golden/test_golden_splitwise.py"
BUCKETSERVE = "tests/golden/test_golden_bucketserve.py"
PREFIX = "tests/golden/test_golden_prefix.py"
POOL = "tests/properties/test_block_pool.py"
ATTENTION = "tests/golden/test_golden_attention.py"
PREFIXES_UNIT = "tests/unit/test_core_prefixes.py"
ROUTERS_UNIT = "tests/unit/test_core_routers.py"


@dataclass(frozen=True)
class Mutation:
    """One flip: `old` stands exactly once in `path` and becomes `new`; `tests` must notice."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


ENGINE = (
    # Attention by the batch.
    Mutation(
        "whole rows: a line holds a step too long",
        "sim/core/attention.py",
        "((slope - slope_fs) * batch) + 1)",
        "((slope - slope_fs) * batch) + 2)",
        (ATTENTION,),
    ),
    Mutation(
        "whole rows: the longest leaves, whoever goes",
        "sim/core/attention.py",
        "self.remove(request.kv_offset)",
        "self.offsets.pop()",
        (ATTENTION,),
    ),
    Mutation(
        "cascade: blocks split off are read by nobody",
        "sim/core/blocks.py",
        "rest.readers = piece.readers",
        "rest.readers = 0",
        (ATTENTION,),
    ),
    # One queue for all instances.
    Mutation(
        "shared queue: seen by who has planned already",
        "sim/core/shared_queue.py",
        "member.wake(now if member.id > by else now + 1)",
        "member.wake(now)",
        (SHARED,),
    ),
    Mutation(
        "shared queue: a removal wakes nobody",
        "sim/core/shared_queue.py",
        "self.queue.remove(request)\n        self._changed(by, now)",
        "self.queue.remove(request)\n        for member in self.members:\n"
        "            member.num_waiting = len(self.queue)",
        (SHARED,),
    ),
    Mutation(
        "shared queue: a victim keeps its old place in a batch",
        "sim/core/seats.py",
        "self.joins: N = id << 40",
        "self.joins: N = 0",
        (SHARED_UNIT,),
    ),
    # Time: spans, order of events, arrivals.
    Mutation(
        "fused span one step too long",
        "sim/core/instance.py",
        "limit = ends - self.steps\n",
        "limit = ends - self.steps + 1\n",
        (STEPS,),
    ),
    Mutation(
        "fused span across a knot",
        "sim/core/instance.py",
        "limit = min(limit, -((kv - piece.kv_end) // batch))",
        "limit = min(limit, -((kv - piece.kv_end) // batch) + 1)",
        (STEPS,),
    ),
    Mutation(
        "fused span outgrows the KV cache",
        "sim/core/instance.py",
        "limit = min(limit, self.steps_until_free_below(0))",
        "limit = min(limit, self.steps_until_free_below(0) + 1)",
        (PREEMPTION,),
    ),
    Mutation(
        "arrival at a step's end is a step late",
        "sim/core/instance.py",
        "self._end_span_after(self.steps_by(now) + self.lag)",
        "self._end_span_after(self.steps_by(now + 1) + self.lag)",
        (STEPS,),
    ),
    Mutation(
        "arrivals after step ends",
        "sim/core/loop.py",
        "ARRIVAL: Final = 2\n",
        "ARRIVAL: Final = 1000\n",
        (STEPS,),
    ),
    Mutation(
        "aborts after step ends",
        "sim/core/loop.py",
        "ABORT: Final = 3\n",
        "ABORT: Final = 1001\n",
        (LEAVING,),
    ),
    Mutation(
        "instances in order of insertion",
        "sim/core/timers.py",
        "    return Timer(env, instance.fire, INSTANCE + instance.id)",
        "    return Timer(env, instance.fire, INSTANCE)",
        (STEPS,),
    ),
    Mutation(
        "arrival chain drops the last",
        "sim/core/arrivals.py",
        "if row < self.count else -1",
        "if row < self.count - 1 else -1",
        (STEPS,),
    ),
    Mutation(
        "closed loop without think time",
        "sim/core/arrivals.py",
        "max(to_fs(think_s), 1)",
        "1",
        (LEAVING,),
    ),
    Mutation(
        "horizon counts the step under way",
        "sim/core/instance.py",
        "steps = self.steps_by(now) - 1\n        if steps > 0:",
        "steps = self.steps_by(now)\n        if steps > 0:",
        (LEAVING,),
    ),
    Mutation(
        "until_s rounded down",
        "sim/types/units.py",
        "if middle / FS_PER_S < seconds:",
        "if middle / FS_PER_S <= seconds:",
        ("tests/unit/test_types_units.py",),
    ),
    Mutation(
        "swap copies take no time",
        "sim/core/seats.py",
        "self.delay_fs += duration",
        "self.delay_fs += 0",
        (PREEMPTION,),
    ),
    # Steps formed one ahead.
    Mutation(
        "ahead: an arrival ends the span a step late",
        "sim/core/instance.py",
        "self._end_span_after(self.steps_by(now) + self.lag)",
        "self._end_span_after(self.steps_by(now) + 2 * self.lag)",
        (ASYNC,),
    ),
    Mutation(
        "ahead: an arrival is seen at the step's end",
        "sim/core/instance.py",
        "self.inbox.formed_fs = now - last_fs",
        "self.inbox.formed_fs = now",
        (ASYNC,),
    ),
    Mutation(
        "ahead: an arrival at a step's end is late",
        "sim/core/inbox.py",
        "if when > until_fs:",
        "if when >= until_fs:",
        (ASYNC,),
    ),
    Mutation(
        "ahead: the seat of a finish is free at once",
        "sim/core/instance.py",
        "if self.lag:\n                    self.leaving.append(request)",
        "if False:\n                    self.leaving.append(request)",
        (ASYNC,),
    ),
    Mutation(
        "ahead: the seat of a one-token request is free at once",
        "sim/core/seats.py",
        "if self.lag:\n                self.leaving.append(request)",
        "if False:\n                self.leaving.append(request)",
        (ASYNC,),
    ),
    Mutation(
        "ahead: a victim at its last token is recomputed",
        "sim/core/seats.py",
        "if request.state == DONE:  # its last token is under way",
        "if False:",
        (ASYNC,),
    ),
    Mutation(
        "ahead: spans although something is not seen yet",
        "sim/core/inbox.py",
        "        instance.fuse = False\n",
        "",
        (ASYNC,),
    ),
    Mutation(
        "ahead: an engine with nothing to run sleeps on",
        "sim/core/inbox.py",
        "            self._see(now)\n            instance.fuse",
        "            instance.fuse",
        (ASYNC,),
    ),
    Mutation(
        "an engine that plans late has seen a request at its arrival",
        "sim/core/inbox.py",
        "self.log.seen(request, until_fs)",
        "self.log.seen(request, when)",
        (ASYNC,),
    ),
    Mutation(
        "v1 admits what does not fit whole",
        "policies/continuous.py",
        "if whole and tokens < left:",
        "if False:",
        (ASYNC,),
    ),
    # Memory and membership.
    Mutation(
        "KV growth looked up a step late",
        "sim/core/instance.py",
        "self.free_blocks -= self.phases[-self.steps % self.period]",
        "self.free_blocks -= self.phases[(-self.steps - 1) % self.period]",
        (PREEMPTION,),
    ),
    Mutation(
        "blocks of a finished request are kept",
        "sim/core/seats.py",
        "self.free_blocks += request.held_blocks\n        request.held_blocks = 0",
        "self.free_blocks += 0\n        request.held_blocks = 0",
        (STEPS,),
    ),
    Mutation(
        "host memory of an aborted request is kept",
        "sim/core/seats.py",
        "self.free_swap_blocks += request.held_blocks",
        "self.free_swap_blocks += 0",
        (LEAVING,),
    ),
    Mutation(
        "full swap space takes more",
        "sim/core/seats.py",
        "held <= self.free_swap_blocks",
        "held >= 0",
        (PREEMPTION,),
    ),
    Mutation(
        "recompute forgets the emitted tokens",
        "sim/core/seats.py",
        "request.target_tokens = request.input_len + request.emitted",
        "request.target_tokens = request.input_len",
        (PREEMPTION,),
    ),
    Mutation(
        "finish heap trusts stale entries",
        "sim/core/instance.py",
        "if request.seq == seq:",
        "if request.state == 2:",
        (PREEMPTION,),
    ),
    Mutation(
        "queue tokens grow for ever",
        "sim/types/queues.py",
        "del self._items[request.id]\n        self.tokens -= request.target_tokens",
        "del self._items[request.id]",
        ("tests/unit/test_types_queues.py",),
    ),
    Mutation(
        "tokens of a sorted queue grow for ever",
        "sim/types/queues.py",
        "self.tokens -= request.target_tokens\n        if self._front",
        "if self._front",
        ("tests/unit/test_types_queues.py", "tests/unit/test_policy_ordering.py"),
    ),
    Mutation(
        "padded batch priced at the sum",
        "sim/core/static.py",
        "self.lens = [max(self.lens)] * len(self.lens)",
        "self.lens = list(self.lens)",
        (STATIC,),
    ),
    Mutation(
        "rejection rule off by one",
        "sim/core/seats.py",
        "spec.total_blocks * spec.block_size + 1)",
        "spec.total_blocks * spec.block_size)",
        (ENGINE_UNIT,),
    ),
    # Records and routing.
    Mutation(
        "stalled batch loses its lead",
        "sim/core/instance.py",
        "lead = now - self.last_emit_fs",
        "lead = 0",
        (STEPS,),
    ),
    Mutation(
        "round robin is stuck",
        "sim/core/routers.py",
        "self._next += 1",
        "self._next += 0",
        ("tests/unit/test_core_routers.py",),
    ),
    # Clocks, host time, presets.
    # From prefill to decode: links, blocks, pipelines.
    Mutation(
        "transfers do not share a link",
        "sim/core/links.py",
        "least = min(self.work_fs) * len(self.work_fs)",
        "least = min(self.work_fs)",
        (TRANSFER,),
    ),
    Mutation(
        "a shared link is one per pair",
        "sim/core/links.py",
        "(-1, -1) if self.shared else",
        "(-1, -1) if False else",
        (TRANSFER,),
    ),
    Mutation(
        "transfers take no time",
        "sim/core/links.py",
        "work = self.latency_fs + size / self.bytes_per_s * FS_PER_S",
        "work = 0.0",
        (TRANSFER,),
    ),
    Mutation(
        "a free transfer joins one step late",
        "sim/core/links.py",
        "if work == 0.0:",
        "if work < 0.0:",
        (TRANSFER,),
    ),
    Mutation(
        "transfer overlap ignored",
        "sim/core/links.py",
        "self.exposed = 1.0 - overlap",
        "self.exposed = 1.0",
        (SPLITWISE, TRANSFER),
    ),
    Mutation(
        "source blocks are free when the transfer starts",
        "sim/core/seats.py",
        "            self.sim.links.start(request, self.sim.instances[request.source], self, now)",
        "            source = self.sim.instances[request.source]\n"
        "            source.free_blocks += request.held_blocks\n"
        "            source.held_blocks -= request.held_blocks\n"
        "            request.held_blocks = 0\n"
        "            source.wake(now)\n"
        "            self.sim.links.start(request, source, self, now)",
        (TRANSFER,),
    ),
    Mutation(
        "source blocks are never free again",
        "sim/core/seats.py",
        "self.held_blocks -= request.held_blocks\n        self.free(request)",
        "self.held_blocks -= request.held_blocks",
        (TRANSFER,),
    ),
    Mutation(
        "a pull in mid-span leaves the span as long as it was",
        "sim/core/instance.py",
        "            self._end_span_after(step + left)\n        return False",
        "        return False",
        (TRANSFER,),
    ),
    Mutation(
        "a pull in mid-span is one step late",
        "sim/core/instance.py",
        "self.pull_step = step\n",
        "self.pull_step = step = step + 1\n",
        (TRANSFER,),
    ),
    Mutation(
        "pull does not ask can_accept",
        "sim/core/seats.py",
        "if not self.policy.can_accept(self, request):",
        "if False:",
        (TRANSFER,),
    ),
    Mutation(
        "a row keeps the steps a pull takes from its span",
        "sim/core/instance.py",
        "self.log.shorten(self.row, step)\n",
        "pass\n",
        (TRANSFER,),
    ),
    Mutation(
        "first gaps of a step that is lost stay in the log",
        "sim/core/instance.py",
        "self.log.gaps_fs.remove(",
        "abs(",
        (FAILURES,),
    ),
    Mutation(
        "bridge is last in, first out",
        "sim/core/seats.py",
        "request = next(iter(bridge.values()))",
        "request = next(reversed(bridge.values()))",
        ("tests/studies/test_bridge.py",),
    ),
    Mutation(
        "ready requests are admitted twice",
        "sim/core/seats.py",
        "if self.ready.pop(request.id, None) is None:",
        "if self.ready.get(request.id) is None:",
        (TRANSFER,),
    ),
    Mutation(
        "ready blocks only grow",
        "sim/core/seats.py",
        "self.ready_blocks -= request.held_blocks\n        self.running",
        "self.ready_blocks -= 0\n        self.running",
        (BUCKETSERVE, TRANSFER),
    ),
    Mutation(
        "first token always from the prefill instance",
        "sim/core/seats.py",
        'sim.settings.first_token == "decode"',
        "False",
        (TRANSFER,),
    ),
    Mutation(
        "pipeline stages are not shared",
        "sim/core/pipeline.py",
        "at = max(at, free[stage]) + share",
        "at = at + share",
        (TRANSFER,),
    ),
    # What policies are told.
    Mutation(
        "monitor without its delay",
        "sim/core/monitor.py",
        "self.messenger.at(now + self.delay_fs)",
        "self.messenger.at(now)",
        (BUCKETSERVE,),
    ),
    Mutation(
        "predictor is always right",
        "sim/core/predictors.py",
        "if right:",
        "if True:",
        ("tests/studies/test_predictors.py",),
    ),
    # Failures of instances.
    Mutation(
        "failures after arrivals and step ends",
        "sim/core/loop.py",
        "FAILURE: Final = 1\n",
        "FAILURE: Final = 1002\n",
        (FAILURES,),
    ),
    Mutation(
        "a token that is taken back keeps its gap",
        "sim/core/seats.py",
        "now - self.log.gaps_fs.pop()",
        "now - self.log.gaps_fs[-1]",
        (FAILURES,),
    ),
    Mutation(
        "a cancelled transfer keeps its source blocks",
        "sim/core/seats.py",
        "        source.transfer_left(request, now)\n        self.wake(now)",
        "        self.wake(now)",
        (FAILURES,),
    ),
    Mutation(
        "put back requests stand the youngest first",
        "sim/core/failures.py",
        "for i in reversed(held) if",
        "for i in held if",
        ("tests/unit/test_core_failures.py",),
    ),
    Mutation(
        "routers see instances that are down",
        "sim/types/policy.py",
        'if i.up and i.role != "decode"',
        'if i.role != "decode"',
        (FAILURES,),
    ),
    # Prefix reuse.
    Mutation(
        "a prompt may be found whole",
        "sim/core/blocks.py",
        "most = (request.target_tokens - 1) // self.size",
        "most = request.target_tokens // self.size",
        (PREFIX,),
    ),
    Mutation(
        "a prompt's blocks are freed first to last",
        "sim/core/blocks.py",
        "for piece in reversed(held):",
        "for piece in held:",
        (POOL,),
    ),
    Mutation(
        "blocks are handed out whose last holder has not left",
        "sim/core/blocks.py",
        "if not piece.refs:\n                self._append(piece)",
        "if piece.refs < 2:\n                self._append(piece)",
        (POOL,),
    ),
    Mutation(
        "a hit on free blocks leaves them in the list",
        "sim/core/blocks.py",
        "            if not piece.refs:\n                self._take(piece)\n",
        "",
        (POOL,),
    ),
    Mutation(
        "growth of the batch comes after the look-up",
        "sim/core/blocks.py",
        "self.sync(ahead)",
        "self.sync()",
        (POOL,),
    ),
    Mutation(
        "a preempted request's own blocks are nameless",
        "sim/core/blocks.py",
        "full = max(request.prefilled // self.size, first)",
        "full = first",
        (PREFIX,),
    ),
    Mutation(
        "what only one request has counts as shared",
        "sim/core/prefixes.py",
        "if counts[place] < 2:",
        "if counts[place] < 1:",
        (PREFIXES_UNIT,),
    ),
    Mutation(
        "prefix router: load never decides",
        "sim/core/routers.py",
        "and busiest > limits.balance_rel_threshold * idlest.outstanding",
        "and busiest > 1 << 62",
        (ROUTERS_UNIT,),
    ),
    # Energy.
)
