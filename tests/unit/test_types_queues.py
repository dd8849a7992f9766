"""The waiting queue."""

import numpy as np

from sim.types import ByKey, Fifo, Request
from sim.types.queues import PIECE


def request(id: int, tokens: int) -> Request:
    return Request(id, 0, 0.0, tokens)


def order(queue: Fifo) -> list[int]:
    return [r.id for r in queue]


def test_first_come_first_served():
    queue = Fifo()
    for id in (3, 1, 2):
        queue.push(request(id, 10 * id))
    assert order(queue) == [3, 1, 2]
    assert (len(queue), queue.tokens) == (3, 60)


def test_requests_put_back_stand_in_front():
    queue = Fifo()
    queue.push(request(1, 10))
    queue.push_front(request(2, 20))
    queue.push_front(request(3, 30))
    queue.push(request(4, 40))
    assert order(queue) == [3, 2, 1, 4]


def test_removal_from_anywhere():
    queue = Fifo()
    requests = [request(id, 10**id) for id in range(4)]
    for each in requests:
        queue.push(each)
    queue.remove(requests[1])
    queue.remove(requests[3])
    assert order(queue) == [0, 2]
    assert (len(queue), queue.tokens) == (2, 101)
    queue.remove(requests[0])
    queue.remove(requests[2])
    assert (len(queue), queue.tokens) == (0, 0)


def test_tokens_are_what_is_to_be_prefilled():
    queue = Fifo()
    recomputed = request(1, 10)
    recomputed.target_tokens = 14  # prompt and 4 emitted tokens
    queue.push_front(recomputed)
    assert queue.tokens == 14
    queue.remove(recomputed)
    assert queue.tokens == 0


def test_entries_above_a_key():
    """Over several pieces, with equal keys; the re-queued are none of them."""
    keys = np.random.default_rng(0).integers(0, 300, 4 * PIECE).tolist()
    queue = ByKey(lambda r: keys[r.id])
    requests = [request(id, 1) for id in range(len(keys))]
    for each in requests:
        queue.push(each)
    queue.push_front(request(10_000, 1))
    queue.remove(requests[7])
    wanted = sorted((keys[r.id], r.id) for r in requests if r.id != 7)
    assert [entry[:2] for entry in queue.entries()] == wanted
    for above in (-1, 0, 150, 298.5, 299, 1000):
        assert [e[:2] for e in queue.entries(above)] == [w for w in wanted if w[0] > above]
    assert queue.key(requests[8]) == keys[8]
