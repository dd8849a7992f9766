"""Run-to-completion batches: prefill, then decode until the longest output is done.

Everything about such a batch is known when it starts. With `release: together` nothing outside can
see into it, so the whole batch is one event, its steps logged ahead of time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sim.core.attention import whole_rows
from sim.core.records import PACK_STATIC_DECODE, PACK_STEP, STATIC_DECODE, STATIC_PREFILL
from sim.types import FS_PER_S, N, Request, RunToCompletion
from sim.types.request import WAITING

if TYPE_CHECKING:
    from sim.core.instance import Instance

MAX_RETRIES: Final = 16
"""Out-of-memory events a request survives: a batch halved so often holds one request."""


class StaticBatch:
    """One run-to-completion batch on an instance.

    KV grows by one token a row and step, padded rows being as long as the longest, and stays until
    the batch ends. When the blocks (or the activations of the prefill) do not fit, the instance
    runs out of memory: every row that has not left is put back, what it emitted is lost, and the
    instance is away for `oom_restart_s`.
    """

    def __init__(self, instance: Instance, plan: RunToCompletion, now: int) -> None:
        self.instance = instance
        self.together = plan.release == "together"
        self.skip = plan.finished_rows == "skip"
        self.padded = instance.sim.settings.padded(plan.padded)
        self.fused = instance.fuse and self.together
        self.requests = list(plan.requests)
        self._admit(now)
        self.lens = [r.target_tokens for r in self.requests]
        if self.padded:
            self.lens = [max(self.lens)] * len(self.lens)
        output_len = instance.output_len
        cap = plan.max_new_tokens or (1 << 40)
        order = sorted([(min(output_len[r.id], cap) - 1, i) for i, r in enumerate(self.requests)])
        self.rows = [(left, self.requests[i], self.lens[i]) for left, i in order]
        """(decode steps to the last token, request, charged prompt length), first to end first."""
        self.kv: N = sum(self.lens)
        self.split = whole_rows(instance, self.lens)
        """Prices steps if attention computes whole rows; None: the instance's cost model does."""
        self.done: N = 0
        """Decode steps logged."""
        self.ended: N = 0
        """Rows that have emitted their last token by then."""
        self.left: N = 0
        """Rows that have left."""
        wanted = self.rows[-1][0]
        self.last: N = self._steps_that_fit(wanted)
        self.crashes = self.last < wanted
        self.held: N = 0 if self.last < 0 else self._blocks_at(self.last)
        instance.free_blocks -= self.held
        self.queue_at_start = instance.num_waiting
        self.end_fs = now
        """When the logged steps end."""
        self.prefill_end_fs = now
        self.start_fs = now
        self.first_row: N = instance.log.count()
        if self.last < 0:
            self._crash(now)
        else:
            self._prefill(now)

    def _admit(self, now: int) -> None:
        instance = self.instance
        if not self.requests or instance.running:
            raise instance.broken("RunToCompletion() of no requests or beside running ones")
        for request in self.requests:
            if not instance.has(request) or request.state != WAITING:
                raise instance.broken(f"request {request.id} is named twice or does not wait here")
            if request.emitted:
                raise instance.broken(f"request {request.id} was preempted in mid-output: no batch")
            instance.admit(request, now)

    # -- memory -----------------------------------------------------------------------------

    def _blocks_at(self, steps: N) -> N:
        """Blocks the batch holds after `steps` decode steps."""
        size = self.instance.block_size
        if self.skip:  # a finished row keeps what it has
            return sum([-(-(length + min(steps, n)) // size) for n, _, length in self.rows])
        if self.padded:
            return len(self.lens) * -(-(self.lens[0] + steps) // size)
        return sum([-(-(n + steps) // size) for n in self.lens])

    def _steps_that_fit(self, wanted: N) -> N:
        """Decode steps that run before memory ends, at most `wanted`; -1: not even the prefill."""
        limit = self.instance.spec.max_step_tokens
        free = self.instance.free_blocks
        if (limit and self.kv > limit) or self._blocks_at(0) > free:
            return -1
        if self._blocks_at(wanted) <= free:
            return wanted
        low, high = 0, wanted
        while high - low > 1:
            middle = (low + high) // 2
            if self._blocks_at(middle) <= free:
                low = middle
            else:
                high = middle
        return low

    # -- time -------------------------------------------------------------------------------

    def _prefill(self, now: int) -> None:
        """Start with the prefill; go on at once if nothing outside can look in."""
        instance = self.instance
        quad = sum([n * n for n in self.lens])
        if self.split is None:
            duration = instance.cost.step(len(self.lens), self.kv, self.kv, quad, 0, 0)
        else:
            rows = [(length, length) for length in self.lens]
            duration = self.split.prompts(rows, self.kv, self.kv, quad, 0, 0, 0)
        if instance.executor is not None:
            chunks = [(r, r.target_tokens) for r in self.requests]
            duration = instance.executor.step(chunks, (), self.padded)
        duration += instance.delay_fs
        instance.delay_fs = 0
        self.end_fs = self.prefill_end_fs = now + duration
        instance.log.rows += PACK_STEP(
            now / FS_PER_S,
            duration,
            0,
            0,
            0,
            1,
            instance.id,
            len(self.requests),
            sum([r.target_tokens for r in self.requests]),
            self.kv,
            0,
            0,
            0,
            0,
            self.queue_at_start,
            STATIC_PREFILL,
            instance.cost.extrapolates(self.kv, 0),
        )
        if self.fused:
            self._decode()
        self._schedule()

    def _schedule(self) -> None:
        self.instance.end_fs = self.end_fs
        self.instance.timer.at(self.end_fs)

    def _decode(self) -> bool:
        """Log the steps up to the next row's end, a knot or the crash; False at the end.

        When nothing outside can look in, log all that follow as well.
        """
        instance = self.instance
        log = instance.log
        rows = self.rows
        count = len(rows)
        kv, done, ended, end = self.kv, self.done, self.ended, self.end_fs
        before = done
        charged = 0
        while done == before or self.fused:
            while ended < count and rows[ended][0] <= done:
                if self.skip:
                    kv -= rows[ended][2] + done
                    if self.split is not None:
                        self.split.remove(rows[ended][2])
                ended += 1
            if done >= self.last:
                break
            if self.skip or not charged:
                charged = count - ended if self.skip else count
                piece = instance.cost.decode(charged)
            if self.split is not None:
                piece = self.split.at(charged, kv, done)
            while kv >= piece.kv_end and piece.next is not None:
                piece = piece.next
            steps = 1
            if instance.fuse:
                steps = rows[ended][0] - done
                if done + steps > self.last:
                    steps = self.last - done
                if piece.next is not None:
                    steps = min(steps, -((kv - piece.kv_end) // charged))
            first = piece.base_fs + piece.slope_fs * kv
            increment = piece.slope_fs * charged
            if instance.executor is not None:
                decodes = [request for _, request, _ in rows[count - charged :]]
                first = instance.executor.step((), decodes, self.padded)
            log.rows += PACK_STATIC_DECODE(
                end / FS_PER_S,
                first,
                increment,
                kv,
                steps,
                instance.id,
                charged,
                self._surviving(ended) if self.crashes else count - ended,
                self.queue_at_start,
                STATIC_DECODE,
                piece.extrapolated,
            )
            end += steps * first + increment * (steps * (steps - 1) // 2)
            kv += steps * charged
            done += steps
        self.kv, self.done, self.ended, self.end_fs = kv, done, ended, end
        return done > before

    def _surviving(self, ended: N) -> N:
        """Rows that emit now and leave before the crash; the tokens of the others are lost."""
        if self.together:
            return 0
        return sum([1 for row in self.rows[ended:] if row[0] <= self.last])

    def advance(self, now: int) -> bool:
        """The steps under way have ended; True if the batch has, too."""
        self.note_first_tokens(now)
        if not self.together:
            self._release(now)
        if self._decode():
            self._schedule()
            return False
        if self.crashes:
            self._crash(now)
            return False
        self._release(now)
        self.instance.give_back(self.held)
        self.instance.static = None
        return True

    def note_first_tokens(self, now: int) -> None:
        """Every row emits its first token when the prefill ends."""
        if self.requests[0].first_token_fs < 0 and self.prefill_end_fs <= now:
            for request in self.requests:
                request.prefill_end_fs = request.first_token_fs = self.prefill_end_fs
                request.decode_instance = self.instance.id

    def settle_at(self, now: int, failed: bool) -> int:
        """The run or the instance stops at `now`: take back the steps that had not ended.

        Of a batch that has `failed` the tokens of rows that have not left are lost. Returns when
        the last step ended.
        """
        self.note_first_tokens(now - 1)
        log = self.instance.log
        start = ended = self.start_fs
        rows = self.rows[: self.left] if failed else self.rows
        done = 0
        for row in log.live()[self.first_row :]:
            if row["instance"] != self.instance.id:
                continue
            steps, first, increment = (int(row[k]) for k in ("n_steps", "first_fs", "increment_fs"))
            left = log.cut(row, start, now)
            if row["kind"] == STATIC_DECODE:
                # A crash to come has taken no tokens yet.
                row["emitting"] = sum([1 for n, _, _ in rows if n > done])
                done += left
            if left:
                ended = start + left * first + increment * (left * (left - 1) // 2)
            start += steps * first + increment * (steps * (steps - 1) // 2)
        self.done = done
        return ended

    def emitted(self, request: Request) -> N:
        """Tokens a row has emitted when the run stops."""
        if request.first_token_fs < 0:
            return 0
        return min(1 + self.done, self.instance.output_len[request.id])

    # -- leaving ----------------------------------------------------------------------------

    def _release(self, now: int) -> None:
        """Let the rows leave that have emitted their last token."""
        instance = self.instance
        while self.left < len(self.rows) and self.rows[self.left][0] <= self.done:
            steps, request, _ = self.rows[self.left]
            self.left += 1
            del instance.running[request.id]
            instance.sim.leave(request, instance, now, steps + 1)

    def _crash(self, now: int) -> None:
        """Out of memory: put the rows that are left back in front and restart the instance."""
        instance = self.instance
        instance.give_back(self.held)
        instance.sim.oom_events += 1
        lost = {request.id for _, request, _ in self.rows[self.left :]}
        for request in reversed(self.requests):
            if request.id not in lost:
                continue
            del instance.running[request.id]
            request.first_token_fs = request.prefill_end_fs = request.prefill_start_fs = -1
            request.retries += 1
            if len(self.requests) == 1 or request.retries > MAX_RETRIES:
                instance.sim.reject(request, instance)
            else:
                instance.requeue(request, now)
        instance.restart(now)
