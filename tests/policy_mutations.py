"""The deliberate bugs that `make mutate` plants in policies, and the tests that catch them."""

from mutations import Mutation

PREEMPTION = "tests/golden/test_golden_preemption.py"
STEPS = "tests/golden/test_golden_steps.py"
STATIC = "tests/golden/test_golden_static.py"
CONTINUOUS_UNIT = "tests/unit/test_policy_continuous.py"
BUCKETSERVE = "tests/golden/test_golden_bucketserve.py"
DEADLINE = "tests/golden/test_golden_deadline.py"
UELLM = "tests/golden/test_golden_uellm.py"
ASCENDRA = "tests/golden/test_golden_ascendra.py"
ASCENDRA_UNIT = "tests/unit/test_policy_ascendra.py"
COSINE_UNIT = "tests/unit/test_policy_cosine.py"
ACCEPTANCE_UNIT = "tests/unit/test_core_acceptance.py"
SPECULATIVE_COSTS = "tests/unit/test_costs_speculative.py"
VALUES = "tests/unit/test_parts_values.py"
SMDP_UNIT = "tests/unit/test_policy_smdp.py"
SMDP_SOLVER = "tests/unit/test_parts_smdp.py"
MIDPOINTS = "tests/unit/test_parts_buckets.py"

POLICIES = (
    # Policies.
    Mutation(
        "v1 victim: first admitted",
        "policies/continuous.py",
        "next(reversed(view.running))",
        "next(iter(view.running))",
        (PREEMPTION,),
    ),
    Mutation(
        "v0 swaps in by eviction",
        "policies/continuous.py",
        "in sorted(view.swapped.items()):",
        "in view.swapped.items():",
        (CONTINUOUS_UNIT,),
    ),
    Mutation(
        "v0 victim: earliest arrival",
        "policies/continuous.py",
        "if request.id > last.id:",
        "if request.id < last.id:",
        (PREEMPTION,),
    ),
    Mutation(
        "v0 admission ignores the watermark",
        "policies/continuous.py",
        "room = view.free_blocks - int(self.watermark * view.total_blocks)\n        cache",
        "room = view.free_blocks\n        cache",
        (CONTINUOUS_UNIT,),
    ),
    Mutation(
        "v1 chunk budget forgets the decodes",
        "policies/continuous.py",
        "budget = self.max_num_batched_tokens - view.decode_tokens",
        "budget = self.max_num_batched_tokens",
        (STEPS,),
    ),
    Mutation(
        "v1 admission ignores the batch's growth",
        "policies/continuous.py",
        "room = view.free_blocks - view.growth_blocks\n        for request in view.prefilling",
        "room = view.free_blocks\n        for request in view.prefilling",
        (PREEMPTION,),
    ),
    Mutation(
        "v1 a request that does not fit is overtaken",
        "policies/continuous.py",
        "            if room < 0:\n                return\n            chunks.append",
        "            if room < 0:\n                room += -(-tokens // size)\n"
        "                continue\n            chunks.append",
        (PREEMPTION,),
    ),
    Mutation(
        "v0 prefills beside swapped requests",
        "policies/continuous.py",
        "elif view.num_waiting and",
        "if view.num_waiting and",
        (PREEMPTION,),
    ),
    Mutation(
        "static: no halving after out of memory",
        "policies/static.py",
        "self.max_batch_size >> head.retries",
        "self.max_batch_size",
        (STATIC,),
    ),
    # Decisions of the policies with two pools, and of UELLM.
    Mutation(
        "distserve pulls whatever is ready",
        "policies/parts/disaggregated.py",
        "if view.ready_blocks >= self.ready_threshold * view.total_blocks:",
        "if False:",
        (BUCKETSERVE, "tests/unit/test_policy_bucketserve.py"),
    ),
    Mutation(
        "distserve pulls at the ready threshold",
        "policies/parts/disaggregated.py",
        "view.ready_blocks >= self.ready_threshold",
        "view.ready_blocks > self.ready_threshold",
        (BUCKETSERVE, "tests/unit/test_policy_bucketserve.py"),
    ),
    Mutation(
        "bucketserve: theta reached splits",
        "policies/parts/midpoint.py",
        "part / total > self.theta",
        "part / total >= self.theta",
        (MIDPOINTS,),
    ),
    Mutation(
        "bucketserve: N_max waiting merges",
        "policies/parts/midpoint.py",
        "if queue.num_bucketed < self.limit",
        "if queue.num_bucketed <= self.limit",
        (MIDPOINTS,),
    ),
    Mutation(
        "bucketserve: the long side splits",
        "policies/parts/midpoint.py",
        "if self.either else short",
        "if self.either else total - short",
        (MIDPOINTS,),
    ),
    Mutation(
        "deadline-batch: nobody is lost",
        "policies/deadline_batch.py",
        "latest_start_s = self.former.latest_start_s if self.config.demote_lost else None",
        "latest_start_s = None",
        (DEADLINE,),
    ),
    Mutation(
        "uellm: acceptance rule the other way",
        "policies/uellm.py",
        "config.overhead <= config.threshold_tokens",
        "config.overhead > config.threshold_tokens",
        (UELLM,),
    ),
    Mutation(
        "uellm: generation is never cut",
        "policies/uellm.py",
        "max_new_tokens=self._cap(batch)",
        "max_new_tokens=None",
        (UELLM,),
    ),
    Mutation(
        "a step ahead that eviction has emptied is formed again at once",
        "sim/core/instance.py",
        "if ahead and self.preempting:",
        "if ahead and self.up < 0:",
        ("tests/agreement/test_naive.py",),
    ),
    # Neighbours of the paper.
    Mutation(
        "smdp: nobody is served for having waited long",
        "policies/smdp.py",
        "if not serve and view.now_s >= next(iter(queue)).arrival_s + self.max_wait_s:",
        "if not serve and view.now_s < 0:",
        (SMDP_UNIT,),
    ),
    Mutation(
        "smdp: the arrivals during a service cost nothing",
        "policies/parts/smdp_model.py",
        "within = np.concatenate(([0.0], self.square_s2 / 2))",
        "within = np.concatenate(([0.0], 0 * self.square_s2))",
        (SMDP_SOLVER,),
    ),
    Mutation(
        "ascendra: risks during the step are not seen",
        "policies/ascendra.py",
        "request.deadline_s < after_s",
        "request.deadline_s < due_s",
        (ASCENDRA_UNIT,),
    ),
    Mutation(
        "ascendra: a move takes no time",
        "policies/ascendra.py",
        "moved[0] + self.transfer_s",
        "moved[0]",
        (ASCENDRA,),
    ),
    Mutation(
        "ascendra: whose prompt is taken moves, too",
        "policies/ascendra.py",
        "[request for request in late if request.id not in taken]",
        "late",
        (ASCENDRA_UNIT,),
    ),
    Mutation(
        "ascendra: nobody is looked at when some prompts are taken",
        "policies/ascendra.py",
        "view.num_waiting > len(chunks)",
        "not chunks",
        (ASCENDRA_UNIT,),
    ),
    Mutation(
        "ascendra: the late stay where they are in order of length",
        "policies/parts/values.py",
        "self._parted_s = self.now_s",
        "pass",
        (VALUES,),
    ),
    Mutation(
        "the queue by key: entries of the key itself",
        "sim/types/queues.py",
        "range(bisect_right(piece, above, key=_KEY), len(piece))",
        "range(bisect_left(piece, above, key=_KEY), len(piece))",
        (VALUES, "tests/unit/test_types_queues.py"),
    ),
    Mutation(
        "a moved request is still counted where it was",
        "sim/core/seats.py",
        "            target.enqueue(request, now)",
        "            target.enqueue(request, now)\n            self.outstanding += 1",
        (ASCENDRA,),
    ),
    Mutation(
        "cosine: nobody untried ever drafts",
        "sim/core/drafter_pool.py",
        "self._explored = self._tried * poor",
        "self._explored = 0 * self._tried * poor",
        (COSINE_UNIT,),
    ),
    Mutation(
        "acceptance: a request's texts are as easy as any other's",
        "sim/core/acceptance.py",
        "odds = odds * np.exp(shift)",
        "odds = odds * np.exp(0 * shift)",
        (ACCEPTANCE_UNIT,),
    ),
    Mutation(
        "starting the kernels of a step takes no host time beside",
        "sim/costs/model.py",
        "total = max(total, self._launch_fs + self._host.of(rows, True, new + kv))",
        "total = max(total, self._launch_fs)",
        ("tests/unit/test_costs_model.py",),
    ),
    Mutation(
        "the model's own row of a verification is free",
        "sim/costs/model.py",
        "piece = self._build_pieces(batch, batch * (drafts + 1))",
        "piece = self._build_pieces(batch, batch * drafts)",
        (SPECULATIVE_COSTS,),
    ),
)
