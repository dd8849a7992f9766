"""vLLM V1 with asynchronous scheduling, written as its loop is: one step at a time, no spans.

One engine, memory without end, prompts whose blocks stay cached. Written apart from `sim.core` to
check it: the loop forms a step, hands it to the device, and when two are under way waits for the
outputs of the first.
"""

from collections import deque

import numpy as np

BLOCK = 16


class NaiveEngine:
    """The loop of `EngineCore.step_with_batch_queue` and the V1 scheduler."""

    def __init__(self, trace, price, seats, budget, ahead=True, prefix=True):
        self.arrival_s = trace.arrival_s
        self.prompt, self.output = trace.input_len.tolist(), trace.output_len.tolist()
        self.blocks = trace.block_hashes or [()] * len(trace)
        self.price, self.seats, self.budget = price, seats, budget
        self.depth = 2 if ahead else 1
        self.cached = set() if prefix else None
        n = len(trace)
        self.computed, self.emitted = [0] * n, [0] * n
        self.seen_s, self.first_s, self.finish_s = (np.full(n, np.nan) for _ in range(3))
        self.running, self.waiting = [], deque()
        self.arrived = self.done = 0

    def run(self):
        """Serve all requests; return when each was seen, began and ended, seconds."""
        now = device_free = 0.0
        under_way = deque()
        while self.done < len(self.prompt):
            while self.arrived < len(self.prompt) and self.arrival_s[self.arrived] <= now:
                self.seen_s[self.arrived] = now
                self.waiting.append(self.arrived)
                self.arrived += 1
            step = self.schedule()
            if step is not None:
                seconds, emitting = step
                device_free = max(device_free, now) + seconds
                under_way.append((device_free, emitting))
                if len(under_way) < self.depth:
                    continue
            if under_way:
                now, emitting = under_way.popleft()
                self.emit(emitting, now)
            elif self.arrived < len(self.prompt):
                now = self.arrival_s[self.arrived]
        return self.seen_s, self.first_s, self.finish_s

    def schedule(self):
        """Return the seconds of the next step and who emits in it; None: nothing to do."""
        budget, chunks, batch, kv, emitting = self.budget, [], 0, 0, []
        for request in self.running:
            at, prompt = self.computed[request], self.prompt[request]
            if at >= prompt + self.output[request] - 1 or not budget:
                continue
            tokens = min(prompt - at, budget) if at < prompt else 1
            if at < prompt:
                chunks.append((tokens, at))
            else:
                batch, kv = batch + 1, kv + at
            budget -= self.advance(request, tokens, emitting)
        while self.waiting and len(self.running) < self.seats and budget:
            request = self.waiting.popleft()
            self.running.append(request)
            hit = self.computed[request] = self.found(request)
            tokens = min(self.prompt[request] - hit, budget)
            chunks.append((tokens, hit))
            budget -= self.advance(request, tokens, emitting)
        if not (chunks or batch):
            return None
        new, context = sum(t for t, _ in chunks), sum(t + at for t, at in chunks)
        quad = sum(t * (t + 2 * at) for t, at in chunks)
        return self.price(len(chunks), new, context, quad, batch, kv), emitting

    def advance(self, request, tokens, emitting):
        self.computed[request] += tokens
        if self.computed[request] >= self.prompt[request]:
            emitting.append(request)
        if self.cached is not None:
            self.cached.update(self.blocks[request][: self.computed[request] // BLOCK])
        return tokens

    def found(self, request):
        """Return the cached tokens a prompt begins with: full blocks, never all tokens."""
        if self.cached is None:
            return 0
        count = 0
        for block in self.blocks[request][: (self.prompt[request] - 1) // BLOCK]:
            if block not in self.cached:
                break
            count += 1
        return count * BLOCK

    def emit(self, emitting, now):
        for request in emitting:
            self.emitted[request] += 1
            if self.emitted[request] == 1:
                self.first_s[request] = now
            if self.emitted[request] == self.output[request]:
                self.finish_s[request] = now
                self.running.remove(request)
                self.done += 1
