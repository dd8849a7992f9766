"""Who holds what on an instance: seats, KV blocks, membership of the decoding batch.

A request in the batch is never touched while it decodes: its state is constants relative to the
instance's step counter (see `View`), so a step costs the same for one request and for five hundred.
Nothing here takes time, except that KV copies leave a delay for the next step.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.core.attention import BatchCost
from sim.core.blocks import BlockPool
from sim.core.loop import heappush
from sim.core.records import StepLog
from sim.types import FS_PER_S, Decode, N, PlanError, Policy, Preemption, Request, View, to_fs
from sim.types.request import (
    BRIDGED,
    DECODING,
    DONE,
    PAUSED,
    PREFILLING,
    READY,
    SWAPPED,
    WAITING,
)

if TYPE_CHECKING:
    from sim.core.inbox import Inbox
    from sim.core.instance import Instance
    from sim.core.simulation import Simulation
    from sim.core.spec import InstanceSpec


class Seats(View):
    """A `View` with the bookkeeping behind it."""

    __slots__ = (
        "batch_cost",
        "delay_fs",
        "executor",
        "finishing",
        "hands_over",
        "in_transfer",
        "inbox",
        "joiners",
        "joins",
        "lag",
        "last_emit_fs",
        "late_token",
        "log",
        "max_tokens",
        "output_len",
        "partial_tokens",
        "policy",
        "pool",
        "preempting",
        "shared",
        "sim",
        "spec",
        "swap_fs_per_block",
    )

    def __init__(self, id: N, spec: InstanceSpec, policy: Policy, sim: Simulation) -> None:
        self.shared = None if spec.role == "decode" else sim.shared
        """The queue it takes from, if that is not its own."""
        super().__init__(
            id,
            spec.cost,
            spec.total_blocks,
            spec.block_size,
            spec.role,
            policy.new_queue() if self.shared is None else self.shared.queue,
            spec.total_swap_blocks,
        )
        self.spec = spec
        self.batch_cost: BatchCost | None = None
        """Prices steps in place of `cost`, where the batch matters and not only its sums."""
        self.policy = policy
        self.pool: BlockPool | None = None
        """What of the KV cache can be found again; None: nothing."""
        if sim.settings.enable_prefix_caching and sim.settings.padding != "batch":
            self.prefix_cache = self.pool = BlockPool(self)
        self.hands_over = spec.role == "prefill" or policy.places_decode
        """Whether a prompt's end asks the policy where the request decodes."""
        self.sim = sim
        self.late_token = sim.settings.first_token == "decode"
        """Whether a prefill's token is emitted only where the request decodes."""
        self.log: StepLog = sim.steps
        self.executor = sim.settings.executor
        self.lag: N = 1 if sim.settings.async_scheduling else 0
        """Steps formed ahead: as many later a span ends for an arrival, and a seat is free."""
        self.inbox: Inbox | None = None
        """Holds back what arrives in mid-step, or notes when it is seen; None: no need."""
        self.output_len = sim.output_len
        self.max_tokens: N = min(spec.max_model_len, spec.total_blocks * spec.block_size + 1)
        """Longest prompt + output served; the last output token is never cached."""
        self.swap_fs_per_block = to_fs(spec.swap_s_per_block)
        self.finishing: list[tuple[N, N, Request]] = []
        """Heap of (step counter at the last token, order of joining, request); an entry is stale
        when the request's `seq` is not that order."""
        self.joins: N = id << 40  # no number is another instance's, where a request may join again
        self.joiners: list[Request] = []
        """Requests that joined the batch after the last decode step was launched."""
        self.last_emit_fs = 0
        self.partial_tokens: N = 0
        """Tokens cached by prompts that are not prefilled completely."""
        self.delay_fs = to_fs(sim.settings.first_step_s)
        """Time of KV copies that the next step has to wait for; at first, of warming up."""
        self.reserve_full_isl = sim.settings.reserve_full_isl
        self.in_transfer: dict[N, Request] = {}
        """On their way here; their blocks are reserved."""
        self.preempting = False
        """Whether something was preempted since the last step."""

    # -- queue and seats --------------------------------------------------------------------

    def enqueue(self, request: Request, now: int) -> None:
        """Let an arriving request join the queue, as soon as the scheduler sees it."""
        request.home = self
        self.outstanding += 1
        self.outstanding_tokens += request.input_len
        if self.inbox is None or not self.inbox.arrive(request, now):
            self.waiting.push(request)
            self.num_waiting += 1

    def join_queue(self, request: Request, front: bool) -> None:
        """Let a request that was held back join the queue."""
        if front:
            self.waiting.push_front(request)
        else:
            self.waiting.push(request)
        self.num_waiting += 1

    def has(self, request: Request) -> bool:
        """Whether a request is here, or waits where this instance may take it from."""
        if self.shared is None:
            return request.home is self
        return request.home is self or self.shared.inside.get(request.id) is request

    def dequeue(self, request: Request) -> None:
        """Take a request out of the instance's own queue."""
        self.waiting.remove(request)
        self.num_waiting -= 1

    def move(self, moves: Sequence[tuple[Request, N]], now: int) -> None:
        """Send waiting requests to the queues of other instances; they hold no KV.

        Where one is too long for its new instance it is rejected, as at arrival.
        """
        for request, to in moves:
            target = self.sim.instances[to]
            if request.home is not self or request.state != WAITING:
                raise self.broken(f"move of request {request.id}, which does not wait here")
            if target is self or not target.up or target.role == "decode":
                raise self.broken(f"move of request {request.id} to instance {to}")
            self.dequeue(request)
            if not self.sim.takes(request, target):
                self.sim.reject(request, self)
                continue
            self.outstanding -= 1
            self.outstanding_tokens -= request.input_len
            request.stamp = -1
            target.enqueue(request, now)
            if request.aborted and self.inbox is not None:
                self.inbox.hand_on(request, target, now)
            # One of lower index has planned at this instant already: see `hand_over`.
            target.wake(now if target.id > self.id else now + 1)

    def requeue(self, request: Request, now: int) -> None:
        """Put a request back in front; its emitted tokens become part of the prompt."""
        request.prefilled = 0
        request.target_tokens = request.input_len + request.emitted
        request.state = WAITING
        if self.shared is not None:
            if request.aborted:  # after out of memory; here it would not be found
                self.sim.leave(request, self, -1, request.emitted)
                return
            self.outstanding -= 1
            self.outstanding_tokens -= request.input_len
            self.shared.push_front(request, now, self.id)
            return
        self.waiting.push_front(request)
        self.num_waiting += 1

    def take_back(self, request: Request, now: int) -> None:
        """Take a request that the failure of an instance has put back."""
        request.home = self
        self.outstanding += 1
        self.outstanding_tokens += request.input_len
        if self.inbox is None or not self.inbox.arrive(request, now, front=True):
            self.requeue(request, now)

    def wipe(self) -> None:
        """Hold nothing: the instance has failed, and its requests have been taken from it."""
        self.free_blocks = self.total_blocks
        if self.pool is not None:
            self.pool.clear()
        self.free_swap_blocks = self.total_swap_blocks
        self.held_blocks = self.ready_blocks = 0
        self.prefilling.clear()
        self.paused.clear()
        self.finishing.clear()
        self.joiners.clear()
        self.phases = [0] * self.period
        self.num_decoding = self.kv_tokens = self.partial_tokens = 0
        self.delay_fs = to_fs(self.sim.settings.first_step_s)
        self.preempting = self.preempted_last_step = False

    def admit(self, request: Request, now: int) -> None:
        """Give a waiting request a seat."""
        if self.shared is None:  # `dequeue`, without the call
            self.waiting.remove(request)
            self.num_waiting -= 1
        else:
            request.home = self
            self.outstanding += 1
            self.outstanding_tokens += request.input_len
            self.shared.remove(request, now, self.id)
        request.state = PREFILLING
        self.running[request.id] = request
        if request.prefill_start_fs < 0:
            request.prefill_start_fs = now
            request.prefill_instance = self.id

    def release(self, request: Request) -> None:
        """Free the blocks and the seat of a request that is in no batch any more."""
        self.free(request)
        del self.running[request.id]

    def free(self, request: Request) -> None:
        """Free the blocks of a request."""
        if self.pool is not None:
            if request.known_blocks:
                self.pool.release(request)
                return
            self.pool.freed += request.held_blocks
        self.free_blocks += request.held_blocks
        request.held_blocks = 0

    def give_back(self, blocks: N) -> None:
        """Free blocks that no request can find again."""
        self.free_blocks += blocks
        if self.pool is not None:
            self.pool.freed += blocks

    # -- the decoding batch -----------------------------------------------------------------

    def join(self, request: Request, cached: N) -> None:
        """Add a request that caches `cached` tokens to the decoding batch."""
        steps = self.steps
        offset = cached - steps
        request.state = DECODING
        request.kv_offset = offset
        request.steps_at_join = steps
        request.decode_instance = self.id
        self.joins += 1
        request.seq = self.joins
        self.phases[offset % self.period] += 1
        self.kv_tokens += cached
        self.num_decoding += 1
        if self.batch_cost is not None:
            self.batch_cost.join(request)
        self.joiners.append(request)
        left = self.output_len[request.id] - request.emitted
        heappush(self.finishing, (steps + left, request.seq, request))

    def note_emitted(self, request: Request) -> None:
        """Count the tokens of a request of the batch that has failed."""
        if self.steps != request.steps_at_join:
            request.emitted += self.steps - request.steps_at_join
            request.last_token_fs = self.last_emit_fs

    def quit(self, request: Request) -> N:
        """Take a request out of the decoding batch; return the tokens it caches."""
        if self.batch_cost is not None:
            self.batch_cost.quit(request)
        steps = self.steps
        offset = request.kv_offset
        cached = offset + steps
        if steps == request.steps_at_join:
            self.joiners.remove(request)
        else:
            request.emitted += steps - request.steps_at_join
            request.last_token_fs = self.last_emit_fs
        request.held_blocks = -(-cached // self.block_size)
        request.seq = -1
        self.phases[offset % self.period] -= 1
        self.kv_tokens -= cached
        self.num_decoding -= 1
        return cached

    def first_token(self, request: Request, now: int) -> None:
        """A prefill is complete: it emits a token, and the request joins the batch."""
        if request.prefill_end_fs < 0:
            request.prefill_end_fs = now
        if request.first_token_fs < 0:
            request.first_token_fs = now
        else:
            self.log.gaps_fs.append(now - request.last_token_fs)
        request.last_token_fs = now
        request.emitted += 1
        if request.emitted >= self.output_len[request.id]:
            if self.lag:
                self.leaving.append(request)
            else:
                self.release(request)
            self.sim.leave(request, self, now, request.emitted)
        elif self.hands_over:
            self.hand_over(request, now)
        else:
            self.join(request, request.target_tokens)

    def decoding(self) -> list[Request]:
        """Return the decoding batch."""
        return [request for request in self.running.values() if request.state == DECODING]

    # -- from prefill to decode -------------------------------------------------------------

    def hand_over(self, request: Request, now: int) -> None:
        """Send a prefilled request to the bridge of the instance where it decodes, if not here.

        Its blocks stay here until they are copied.
        """
        if request.aborted:
            self.release(request)
            self.sim.leave(request, self, -1, request.emitted)
            return
        target = self.sim.decoder
        if target is None and (self.sim.cluster.decode or self.policy.places_decode):
            target = self.decode_place(request)
            if target is self:
                self.join(request, request.target_tokens)
                return
        del self.running[request.id]
        self.held_blocks += request.held_blocks
        request.source = self.id
        request.stamp = -1
        request.state = BRIDGED
        if self.late_token:
            self._take_back_token(request, now)
        if target is None:  # parked here until a decode instance is up
            self.bridge[request.id] = request
            return
        # An instance of lower index has planned at this instant already (or will find out only
        # when its span is cut here): for it the request comes just after.
        self.send(request, target, now if target.id > self.id else now + 1)

    def decode_place(self, request: Request) -> Instance:
        """Ask the policy where a prefilled request decodes."""
        target = self.sim.instances[self.policy.route(request, self.sim.cluster)]
        if target is not self:
            to = "route() sends prefilled request"
            if target.role == "prefill" and not self.policy.places_decode:
                raise self.broken(f"{to} {request.id} to a prefill instance")
            if not target.up:
                raise self.broken(f"{to} {request.id} to instance {target.id}, which is down")
        return target

    def send(self, request: Request, target: Instance, when: int) -> None:
        """Put a prefilled request on the bridge of `target`, which may pull it from `when` on."""
        self.outstanding -= 1
        self.outstanding_tokens -= request.input_len
        request.home = target
        target.bridge[request.id] = request
        target.outstanding += 1
        target.outstanding_tokens += request.input_len
        target.bridged(when)

    def _take_back_token(self, request: Request, now: int) -> None:
        """Undo `first_token`: the decode instance computes the last token again and emits it."""
        request.emitted -= 1
        if request.emitted:  # a failure sent it through a prefill again
            request.last_token_fs = now - self.log.gaps_fs.pop()
        else:
            request.first_token_fs = -1

    def pull(self, now: int) -> None:
        """Accept requests from the head of the bridge while the policy agrees."""
        bridge = self.bridge
        while bridge:
            request = next(iter(bridge.values()))
            if request.source == self.id:  # parked
                return
            if not self.policy.can_accept(self, request):
                return
            blocks = -(-request.prefilled // self.block_size)
            if blocks > self.free_blocks:
                raise self.broken(
                    f"can_accept() took request {request.id} of {blocks} KV blocks, "
                    f"{self.free_blocks} are free"
                )
            del bridge[request.id]
            self.free_blocks -= blocks
            self.ready_blocks += blocks
            self.in_transfer[request.id] = request
            if request.transfer_start_fs < 0:
                request.transfer_start_fs = now
            self.sim.links.start(request, self.sim.instances[request.source], self, now)

    def lose(self, request: Request, now: int) -> None:
        """Drop a request on the bridge or on its way here: an instance at either end has failed."""
        source = self.sim.instances[request.source]
        if self.bridge.pop(request.id, None) is None:
            del self.in_transfer[request.id]
            reserved = self.blocks_for(request.prefilled)
            self.give_back(reserved)
            self.ready_blocks -= reserved
            self.sim.links.cancel(request, now)
        source.transfer_left(request, now)
        self.wake(now)

    def transfer_left(self, request: Request, now: int) -> None:
        """The KV of a request has been copied away: its blocks are free."""
        self.held_blocks -= request.held_blocks
        self.free(request)
        self.wake(now)

    def transfer_arrived(self, request: Request, now: int) -> None:
        """The KV of a request is here."""
        del self.in_transfer[request.id]
        request.source = -1
        request.held_blocks = reserved = -(-request.prefilled // self.block_size)
        if self.late_token:
            request.prefilled -= 1  # the last prompt token is computed again
            request.held_blocks = self.blocks_for(request.prefilled)
            self.give_back(reserved - request.held_blocks)
            self.ready_blocks -= reserved - request.held_blocks
        if request.transfer_end_fs < 0:
            request.transfer_end_fs = now
        request.state = READY
        self.ready[request.id] = request
        if request.aborted:
            self.apply_abort(request, now)
        self.wake(now)

    def admit_ready(self, request: Request) -> None:
        """Let a transferred request join the batch."""
        if self.ready.pop(request.id, None) is None:
            raise self.broken(f"admission of request {request.id}, which is not ready here")
        self.ready_blocks -= request.held_blocks
        self.running[request.id] = request
        self.join(request, request.prefilled)

    # -- eviction, swapping, aborts ---------------------------------------------------------

    def make_room(self, chunks: list[tuple[Request, N]], decode: bool, now: int) -> None:
        """Evict victims until the batch can grow and running chunks have their blocks.

        A victim's chunk leaves `chunks`; the policy names the victims.
        """
        while self.running_need(chunks, decode) > self.free_blocks:
            if not self.running:
                raise self.broken("the KV cache cannot grow and nothing is left to evict")
            preemption = self.policy.victim(self)
            self.preempt(preemption, now)
            for at, (request, _) in enumerate(chunks):
                if request is preemption.request:
                    del chunks[at]
                    break

    def running_need(self, chunks: Sequence[tuple[Request, N]], decode: bool) -> N:
        """Blocks that requests already running need for the next step."""
        need = self.phases[-self.steps % self.period] if decode else 0
        for request, tokens in chunks:
            if request.state == PREFILLING:
                need += self.blocks_for(request.prefilled + tokens) - request.held_blocks
        return need

    def preempt(self, preemption: Preemption, now: int) -> None:
        """Evict a running request, by swap or recompute."""
        request = preemption.request
        if request.home is not self or request.id not in self.running:
            raise self.broken(f"preemption of request {request.id}, which does not run here")
        self.preempting = True
        if request.state == DONE:  # its last token is under way
            self.leaving.remove(request)
            self.release(request)
            return
        decoding = request.state == DECODING
        if decoding:
            request.prefilled = self.quit(request)
        held = request.held_blocks
        swap = preemption.swap and decoding and held <= self.free_swap_blocks
        if self.pool is not None and not swap:
            self.pool.keep(request)
        self._drop(request)
        request.preemptions += 1
        if swap:
            self.sim.preemptions_swap += 1
            request.held_blocks = held
            request.state = SWAPPED
            self.swapped[request.id] = request
            self.free_swap_blocks -= held
            self._copy(request, held, now, "out")
        else:
            self.sim.preemptions_recompute += 1
            self.requeue(request, now)

    def swap_in(self, request: Request, now: int) -> None:
        """Copy a swapped request's blocks back; it rejoins the batch."""
        if self.swapped.pop(request.id, None) is None:
            raise self.broken(f"swap-in of request {request.id}, which is not swapped out here")
        held = request.held_blocks
        if held > self.free_blocks:
            raise self.broken(f"swap-in of {held} KV blocks, {self.free_blocks} are free")
        self.free_blocks -= held
        self.free_swap_blocks += held
        self.running[request.id] = request
        self._copy(request, held, now, "in")
        self.join(request, request.prefilled)

    def change_batch(self, plan: Decode, now: int) -> None:
        """Carry out what a plan changes in the batch."""
        for preemption in plan.preempt:
            self.preempt(preemption, now)
        for request in plan.pause:
            self.pause(request)
        for request in plan.resume:
            self.resume(request)
        for request in plan.swap_in:
            self.swap_in(request, now)
        if plan.move:
            self.move(plan.move, now)

    def pause(self, request: Request) -> None:
        """Let a decoding request sit out; it keeps its blocks and its seat."""
        if request.home is not self or request.state != DECODING:
            raise self.broken(f"pause of request {request.id}, which is not decoding here")
        request.prefilled = self.quit(request)
        self.partial_tokens += request.prefilled
        request.state = PAUSED
        self.paused[request.id] = request

    def resume(self, request: Request) -> None:
        """Let a paused request rejoin the batch."""
        if self.paused.pop(request.id, None) is None:
            raise self.broken(f"resume of request {request.id}, which is not paused here")
        self.partial_tokens -= request.prefilled
        self.join(request, request.prefilled)

    def apply_abort(self, request: Request, now: int) -> None:
        """Take out a request whose client has gone, wherever it is."""
        if request.state == DONE:
            return
        if request.state == DECODING:
            self.quit(request)
            self.release(request)
        elif request.state == SWAPPED:
            del self.swapped[request.id]
            self.free_swap_blocks += request.held_blocks
            request.held_blocks = 0
        elif request.state == WAITING:
            self.dequeue(request)
        elif request.state == BRIDGED:
            if self.bridge.pop(request.id, None) is None:
                return  # on its way: dropped on arrival
            self.sim.instances[request.source].transfer_left(request, now)
        elif request.state == READY:
            del self.ready[request.id]
            self.ready_blocks -= request.held_blocks
            self.free(request)
        else:
            self._drop(request)
        self.sim.leave(request, self, -1, request.emitted)

    def _drop(self, request: Request) -> None:
        """Release a request that does not decode, and forget its cached tokens."""
        self.release(request)
        partial = self.prefilling.pop(request.id, None)
        if partial is None:
            partial = self.paused.pop(request.id, None)
        if partial is not None:
            self.partial_tokens -= request.prefilled

    def _copy(self, request: Request, blocks: N, now: int, direction: str) -> None:
        """Copy blocks between GPU and host; the next step starts after it."""
        duration = blocks * self.swap_fs_per_block
        start = now + self.delay_fs
        self.log.swaps.append(
            (start / FS_PER_S, duration / FS_PER_S, self.id, request.id, blocks, direction)
        )
        self.delay_fs += duration

    @abc.abstractmethod
    def wake(self, now: int) -> None:
        """Something changed: plan as soon as possible."""

    @abc.abstractmethod
    def bridged(self, now: int) -> None:
        """A prefilled request has joined the bridge: pull as soon as possible."""

    def broken(self, what: str) -> PlanError:
        """Return the error for a plan that breaks the contract."""
        return PlanError(
            f"policy {self.policy.name!r} on instance {self.id} at {self.now_s} s: {what}"
        )
