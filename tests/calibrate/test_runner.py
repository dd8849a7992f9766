"""Steps over the paged cache: padded and packed, pages, kernels and what a bad step says."""

from types import SimpleNamespace

import pytest
import torch
from gpu_standins import capture, in_place

from calibrate import attention, graphs, runner
from calibrate.attention import Flex, Group, choose_packed, difference, loop, probe, rectangle
from calibrate.cache import MAX_SEQUENCES, TRASH_ROW, OutOfBlocks, PagedCache
from calibrate.device import Device
from calibrate.graphs import DecodeGraphs
from calibrate.model import Transformer
from calibrate.runner import Chunk, Runner
from calibrate.weights import Constants
from sim.costs.catalogue import Model
from sim.types import BadInput

CPU = Device.open("cpu")
AT = CPU.torch_device
SPEC = Model(
    name="small", layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, ffn=48, gated=True,
    vocab=101, max_length=64, norm="layernorm", positions="learned", qk_norm=False,
    tied_embeddings=False, bias="none", params_published=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(3)

    def take(name, *shape):  # large enough that tokens depend on what they attend to
        return 0.3 * torch.randn(shape, generator=generator) + name.endswith("norm.weight")

    return Transformer(SPEC, Constants(), take)


def prompt(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(101, (length,), generator=generator).tolist()


def start(model, *, padded=False, num_blocks=40, **options):
    return Runner(model, CPU, num_blocks=num_blocks, block_size=4, padded=padded, **options)


def generate(at, lens, steps):
    """Prefill prompts of these lengths together and decode; return the tokens of each."""
    got = {n: [] for n in range(len(lens))}
    first, _ = at.step([Chunk(n, prompt(n, length)) for n, length in enumerate(lens)], [])
    for tokens in [first] + [at.step([], list(got))[0] for _ in range(steps)]:
        for n, token in tokens.items():
            got[n].append(token)
    return got


def test_padded_and_packed_give_equal_tokens(model):
    lens = [5, 17, 1, 30]
    packed = generate(start(model), lens, 20)
    assert generate(start(model, padded=True), lens, 20) == packed
    alone = [generate(start(model), lens[:1], 20)[0]]
    assert packed[0] == alone[0]  # nor does a batch change what a sequence says
    assert len({tuple(tokens) for tokens in packed.values()}) == 4


@pytest.mark.parametrize(("padded", "computed"), [(False, 5 + 9 + 1 + 2), (True, 3 * 9 + 2)])
def test_padding_is_computed(model, padded, computed, monkeypatch):
    at = start(model, padded=padded)
    at.pretend(8, 10)
    at.pretend(9, 3)
    seen = []
    forward = model.forward

    def spy(tokens, positions, attend):
        def watch(layer, q, k, v):
            out = attend(layer, q, k, v)
            seen.append((len(tokens), len(q), len(out)))
            return out

        return forward(tokens, positions, watch)

    monkeypatch.setattr(model, "forward", spy)
    at.step([Chunk(n, prompt(n, length)) for n, length in enumerate((5, 9, 1))], [8, 9])
    assert seen == [(computed,) * 3] * SPEC.layers


@pytest.mark.parametrize("padded", [False, True])
def test_released_pages_leak_nothing(model, padded):
    fresh = start(model, padded=padded, num_blocks=16)
    expected = generate(fresh, [10, 6], 12)
    used = start(model, padded=padded, num_blocks=16)
    for n, length in ((5, 20), (6, 9), (7, 15), (8, 13)):
        used.step([Chunk(n, prompt(n, length))], [])
    for n in (6, 5, 8, 7):
        used.release(n)
    assert used.cache.free_blocks == 16
    assert generate(used, [10, 6], 12) == expected
    used.release(0)  # and beside one that still runs, in the pages of one that left
    used.step([Chunk(2, prompt(0, 10))], [])
    beside = [used.step([], [2, 1])[0][2] for _ in range(12)]
    assert beside == expected[0][1:]


def test_pages_are_held_once_and_given_back():
    cache = PagedCache(SPEC, 5, 4, torch.float32, AT)
    cache.hold(0, 5)
    cache.hold(1, 4)
    cache.hold(0, 8)  # still two pages
    assert cache.free_blocks == 2
    cache.refresh_table()
    held = [set(cache.table[cache.row(n), :count].tolist()) for n, count in ((0, 2), (1, 1))]
    assert len(held[0] | held[1]) == 3
    with pytest.raises(OutOfBlocks, match="sequence 1: 3 more KV blocks for 13 tokens, 2 of 5"):
        cache.hold(1, 13)
    assert cache.free_blocks == 2
    cache.release(0)
    cache.hold(1, 20)
    assert cache.free_blocks == 0
    with pytest.raises(OutOfBlocks, match="sequence 2: 1 more"):
        cache.hold(2, 1)
    cache.release(1)
    with pytest.raises(BadInput, match="sequence 1: 21 tokens, at most 20 fit"):
        cache.hold(1, 21)
    with pytest.raises(BadInput, match="0 blocks of 4 tokens"):
        PagedCache(SPEC, 0, 4, torch.float32, AT)


def test_the_table_on_the_device_is_that_of_the_last_holders():
    cache = PagedCache(SPEC, 4, 4, torch.float32, AT)
    cache.hold(0, 8)
    row = cache.row(0)
    cache.release(0)
    cache.hold(1, 4)  # in the row of one that left before a step
    cache.hold(2, 12)
    assert cache.row(1) == row
    cache.refresh_table()
    pages = cache.table[row, :1].tolist() + cache.table[cache.row(2), :3].tolist()
    assert sorted(pages) == [0, 1, 2, 3]
    held = cache.table.clone()
    cache.refresh_table()
    assert torch.equal(cache.table, held)
    assert (cache.table[TRASH_ROW] == 4).all()


def test_a_step_without_new_pages_writes_the_table_too():
    """As one with them does: measured steps rewind sequences, and take no new pages."""
    cache = PagedCache(SPEC, 4, 4, torch.float32, AT)
    cache.refresh_table()
    version = cache.table._version
    cache.refresh_table()
    assert cache.table._version > version


def test_a_table_row_for_every_sequence():
    cache = PagedCache(SPEC, MAX_SEQUENCES + 1, 1, torch.float32, AT)
    for n in range(MAX_SEQUENCES):
        cache.hold(n, 1)
    with pytest.raises(OutOfBlocks, match="1024 sequences"):
        cache.hold(MAX_SEQUENCES, 1)
    assert cache.free_blocks == 1
    cache.release(7)
    cache.hold(MAX_SEQUENCES, 1)


def test_a_step_that_finds_no_pages_advances_nobody(model):
    at = start(model, num_blocks=6)
    at.step([Chunk(0, prompt(0, 8)), Chunk(1, prompt(1, 8))], [])
    with pytest.raises(OutOfBlocks):
        at.step([Chunk(2, prompt(2, 8))], [0, 1])
    assert (at.cached(0), at.cached(1), at.cached(2)) == (8, 8, 0)
    at.release(1)
    at.release(2)
    after = [at.step([], [0])[0][0] for _ in range(3)]
    assert after == generate(start(model), [8], 3)[0][1:]


def test_pretend_marks_and_rewinds(model):
    at = start(model)
    at.pretend(0, 10)
    at.step([Chunk(0, prompt(0, 3), 10)], [])
    assert at.cached(0) == 13
    at.pretend(0, 10)
    assert at.cached(0) == 10
    tokens, timing = at.step([], [0])
    assert at.cached(0) == 11
    assert list(tokens) == [0]
    assert 0 < timing.device_ms <= timing.wall_ms


@pytest.mark.parametrize("padded", [False, True])
def test_up_to_the_longest_sequence(model, padded):
    """A padded row may reach past the last position; what is real does not change."""
    at = start(model, padded=padded)
    at.pretend(0, 62)
    at.pretend(1, 4)
    at.step([Chunk(0, [1], 62), Chunk(1, prompt(1, 20), 4)], [])
    at.step([], [0])
    assert at.cached(0) == 64
    with pytest.raises(BadInput, match="sequence 0: 65 tokens, at most 64"):
        at.step([], [0])


def test_bad_steps_are_named(model):
    at = start(model)
    with pytest.raises(BadInput, match="without a chunk or a decode"):
        at.step([], [])
    with pytest.raises(BadInput, match=r"twice in one step: \[3, 3\]"):
        at.step([Chunk(3, [1])], [3])
    with pytest.raises(BadInput, match="sequence 3: a chunk of 1 tokens after 2; it has 0 cached"):
        at.step([Chunk(3, [1], 2)], [])
    with pytest.raises(BadInput, match="a chunk of 0 tokens"):
        at.step([Chunk(3, [])], [])


# --- kernels -----------------------------------------------------------------------------------


def batch(q_lens, k_lens, heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(sum(q_lens), heads, 16, generator=generator)
    k, v = (torch.randn(sum(k_lens), kv_heads, 16, generator=generator) for _ in range(2))
    return q, k, v, Group.of(q_lens, k_lens, AT)


def test_the_loop_by_hand():
    q, k, v, group = batch([2], [3], heads=2, kv_heads=1)
    out = loop(q, k, v, group)
    for token, seen in ((0, 2), (1, 3)):
        scores = q[token] @ k[:seen, 0].T / 4.0
        assert torch.allclose(out[token], scores.softmax(-1) @ v[:seen, 0], atol=1e-6)


@pytest.mark.slow  # 4 s to start FlexAttention up
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("q_lens", "k_lens"), [([5, 1, 9], [5, 1, 9]), ([3, 1, 7], [10, 40, 7])])
def test_flex_attention_masks_as_the_loop(q_lens, k_lens):
    flex = Flex(compiled=False)
    flex(*batch([2], [2]))  # the mask of an earlier step is not kept
    inputs = batch(q_lens, k_lens)
    assert difference(flex(*inputs), loop(*inputs)) < 1e-5


def test_rectangles_attend_as_the_loop():
    inputs = batch([6, 6, 6], [6, 6, 6])
    assert difference(rectangle(*inputs), loop(*inputs)) < 1e-5


def test_a_wrong_kernel_is_found_out():
    assert probe(loop, SPEC, torch.float32, AT) is None
    assert "differs" in probe(lambda q, k, v, g: loop(q, k, v, g) * 1.1, SPEC, torch.float32, AT)
    assert "nan" in probe(lambda q, k, v, g: q * float("nan"), SPEC, torch.float32, AT)

    def from_the_left(q, k, v, group):  # a causal mask from the wrong corner
        keys = [x[:n] for x, n in zip(k.split(group.k_lens), group.q_lens, strict=True)]
        values = [x[:n] for x, n in zip(v.split(group.k_lens), group.q_lens, strict=True)]
        return loop(q, torch.cat(keys), torch.cat(values), Group.of(group.q_lens, group.q_lens, AT))

    assert "differs" in probe(from_the_left, SPEC, torch.float32, AT)


def test_the_choice_falls_back_and_says_why(monkeypatch):
    gpu = SimpleNamespace(type="cuda")
    reasons = {"varlen": "too old", "flex": None}

    def broken():
        raise ImportError("no varlen here")

    monkeypatch.setattr(attention, "varlen", lambda: "varlen")
    monkeypatch.setattr(attention, "Flex", lambda: "flex")
    monkeypatch.setattr(attention, "probe", lambda kernel, *_: reasons[kernel])
    name, kernel, note = choose_packed(SPEC, torch.float32, gpu)
    assert (name, kernel, note) == ("flex", "flex", "varlen is not available (too old)")
    monkeypatch.setattr(attention, "varlen", broken)
    reasons["flex"] = "wrong"
    name, kernel, note = choose_packed(SPEC, torch.float32, gpu)
    assert (name, kernel) == ("loop", loop)
    assert "ImportError: no varlen here" in note
    assert "flex is not available (wrong)" in note
    assert choose_packed(SPEC, torch.float32, AT)[0] == "loop"


# --- decodes that read pages in place, without the GPU -------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("use_graphs", [False, True])
def test_decodes_in_pages_and_graphs_give_the_same_tokens(model, padded, use_graphs, monkeypatch):
    lens = [5, 17, 1, 9]
    expected = generate(start(model), lens, 12)
    monkeypatch.setattr(runner, "choose_paged", lambda *_: (in_place, ""))
    monkeypatch.setattr(DecodeGraphs, "_capture", capture)
    at = start(model, padded=padded, graphs=use_graphs)
    assert at.kernel.endswith("+paged")
    assert generate(at, lens, 12) == expected
    plain = start(model, graphs=False)
    generate(plain, lens, 12)
    for group in ([0, 1, 2], [3, 1, 0, 2]):  # three decodes run in the graph of four
        assert at.step([], group)[0] == plain.step([], group)[0]
    tokens, _ = at.step([Chunk(9, prompt(9, 6))], [1])  # a chunk in the step: no graph
    assert at.cached(1) == 17 + 15
    alone, _ = start(model).step([Chunk(9, prompt(9, 6))], [])
    assert tokens[9] == alone[9]


def test_graphs_captured_ahead_are_not_captured_in_a_step(model, monkeypatch):
    captured = []

    def note(self, size):
        captured.append(size)
        return capture(self, size)

    monkeypatch.setattr(runner, "choose_paged", lambda *_: (in_place, ""))
    monkeypatch.setattr(DecodeGraphs, "_capture", note)
    at = start(model)
    at.warm_up(5)
    assert captured == [8, 4, 2, 1]
    generate(at, [5, 17, 1, 9, 3], 2)
    assert captured == [8, 4, 2, 1]
    without = start(model, graphs=False)
    without.warm_up(5)
    assert len(captured) == 4


def test_a_batch_runs_in_the_next_larger_graph(monkeypatch):
    monkeypatch.setattr(DecodeGraphs, "_capture", capture)
    monkeypatch.setattr(graphs, "GRAPH_SIZES", (1, 4))
    decode_graphs = DecodeGraphs(lambda inputs: inputs[0].clone(), AT)
    full, part = torch.arange(12).reshape(3, 4), torch.arange(9).reshape(3, 3)
    assert torch.equal(decode_graphs.prepare(full).inputs, full)
    again = decode_graphs.prepare(part)  # nothing of the batch before is left
    assert torch.equal(again.inputs[:, :3], part)
    assert again.inputs[:, 3].tolist() == [TRASH_ROW, 0, 1]
    assert decode_graphs.prepare(full) is again
    assert decode_graphs.prepare(torch.ones(3, 5).long()) is None


def test_a_wrong_paged_kernel_is_found_out():
    assert attention.probe_paged(in_place, SPEC, torch.float32, AT) is None

    def no_mask(q, keys, values, table, rows, lengths, spans, page):
        return in_place(q, keys, values, table, rows, spans, spans, page)

    assert "differs" in attention.probe_paged(no_mask, SPEC, torch.float32, AT)
