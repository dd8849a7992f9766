"""On a CUDA GPU: every kernel against the loop, CUDA graphs against none, padded against packed."""

import pytest
import torch

from calibrate import runner as runners
from calibrate.attention import Flex, Group, choose_packed, difference, loop, probe, varlen
from calibrate.cache import PagedCache
from calibrate.device import Device
from calibrate.model import Transformer
from calibrate.rig import _blocks_that_fit
from calibrate.runner import Chunk, Runner
from sim.costs.catalogue import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # compilers warn of what is no error here
]

AT = torch.device("cuda", 0)
SHAPES = {"mha": (8, 8, 128), "gqa-4": (32, 8, 128), "gqa-7": (28, 4, 128), "narrow": (8, 2, 64)}
BF16_TOLERANCE = 2e-2
FP32_TOLERANCE = 2e-3  # sums of another order over 2 layers


def spec(heads=8, kv_heads=4, head_dim=64):
    return Model(
        name="small", layers=2, hidden=256, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        ffn=512, gated=True, vocab=1000, max_length=1024, norm="rmsnorm", positions="rope",
        qk_norm=False, tied_embeddings=False, bias="none", params_published=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def device():
    return Device.open("cuda")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_against_the_loop(shape, dtype, device):
    assert probe(varlen(), spec(*SHAPES[shape]), dtype, AT) is None


@pytest.mark.slow  # compiles for minutes; only where varlen is refused
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_flex_against_the_loop(shape, dtype, device):
    torch.compiler.reset()
    assert probe(Flex(), spec(*SHAPES[shape]), dtype, AT) is None


def test_varlen_over_many_short_and_one_long_sequence(device):
    new = [8] * 200 + [3000] + [1] * 55
    total = [n + 64 * (i % 3) for i, n in enumerate(new)]
    generator = torch.Generator(AT).manual_seed(0)
    q, k, v = (
        torch.randn(rows, heads, 128, generator=generator, device=AT, dtype=torch.bfloat16)
        for rows, heads in ((sum(new), 32), (sum(total), 8), (sum(total), 8))
    )
    group = Group.of(new, total, AT)
    assert difference(varlen()(q, k, v, group), loop(q, k, v, group)) < BF16_TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("batch", "longest"), [(1, 5000), (3, 700), (200, 300)])
def test_paged_decode_against_the_loop(shape, dtype, batch, longest, device):
    from calibrate.paged import paged_attention

    heads, kv_heads, dim = SHAPES[shape]
    generator = torch.Generator(AT).manual_seed(0)
    columns = -(-longest // 16)
    normal = {"generator": generator, "device": AT, "dtype": dtype}
    keys, values = (torch.randn(batch * columns * 16, kv_heads, dim, **normal) for _ in range(2))
    q = torch.randn(batch, heads, dim, **normal)
    table = torch.randperm(batch * columns, generator=generator, device=AT)
    table = table.reshape(batch, columns).int()
    lengths = torch.randint(1, longest + 1, (batch,), generator=generator, device=AT)
    lengths[0] = longest
    rows = torch.arange(batch, device=AT)
    places = torch.cat([torch.arange(n, device=AT) for n in lengths.tolist()])
    slots = table[rows.repeat_interleave(lengths), places // 16].long() * 16 + places % 16
    group = Group.of([1] * batch, lengths.tolist(), AT)
    expected = loop(q, keys[slots], values[slots], group)
    tolerance = 1e-4 if dtype == torch.float32 else BF16_TOLERANCE
    for spans in (lengths, torch.full_like(lengths, longest)):
        out = paged_attention(q, keys, values, table, rows, lengths, spans, 16)
        assert difference(out, expected) < tolerance


def test_the_best_kernels_are_chosen(device):
    name, _, note = choose_packed(spec(), torch.bfloat16, AT)
    assert (name, note) == ("varlen", "")
    model = Transformer.random(spec(), "bf16", AT)
    runner = Runner(model, device, num_blocks=64, padded=False)
    assert (runner.kernel, runner.kernel_note) == ("varlen+paged", "")
    runner = Runner(model, device, num_blocks=64, padded=True)
    assert (runner.kernel, runner.kernel_note) == ("sdpa-padded+paged", "")


def play(runner):
    """Logits of prefill, chunked prefill beside decodes, and decodes, with forced tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1000, (n,), generator=generator).tolist() for n in (70, 333, 5)]
    steps = [
        [Chunk(0, prompts[0]), Chunk(1, prompts[1][:100])],
        [Chunk(1, prompts[1][100:], 100), Chunk(2, prompts[2])],
        *([Chunk(n, [7], length + at)] for at in range(3) for n, length in ((0, 70), (1, 333))),
    ]
    rows = [runner.logits(chunks, []) for chunks in steps]
    return torch.cat(rows).cpu()


@pytest.fixture
def no_flex(monkeypatch):
    """Let runners in fp32, which varlen does not take, attend in a loop: Flex compiles for long."""
    monkeypatch.setattr(runners, "choose_packed", lambda *_: ("loop", loop, ""))


@pytest.mark.parametrize("padded", [False, True])
def test_fp32_logits_equal_those_of_the_cpu(padded, device, no_flex):
    here = Transformer.random(spec(), "fp32", torch.device("cpu"))
    there = Transformer.random(spec(), "fp32", AT)
    for ours, theirs in zip(_tensors(here), _tensors(there), strict=True):
        theirs.copy_(ours)
    expected = play(Runner(here, Device.open("cpu"), num_blocks=64, padded=False))
    got = play(Runner(there, device, num_blocks=64, padded=padded))
    assert difference(got, expected) < FP32_TOLERANCE


def _tensors(model):
    yield model._embed
    yield model._head.weight
    for layer in model.layers:
        for linear in (layer.qkv, layer.out, layer.up, layer.down):
            yield linear.weight


def tokens(runner, batch, steps):
    generator = torch.Generator().manual_seed(2)
    lens = [5 + 37 * n % 200 for n in range(batch)]
    chunks = [
        Chunk(n, torch.randint(1000, (length,), generator=generator).tolist())
        for n, length in enumerate(lens)
    ]
    first, _ = runner.step(chunks, [])
    return [first] + [runner.step([], list(range(batch)))[0] for _ in range(steps)]


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
@pytest.mark.parametrize("padded", [False, True])
def test_graphs_give_the_same_tokens(batch, padded, device, no_flex):
    """In fp32, where a different order of sums does not decide between tokens."""
    model = Transformer.random(spec(), "fp32", AT)
    options = {"num_blocks": 1024, "padded": padded}
    with_graphs = tokens(Runner(model, device, **options), batch, 30)
    assert with_graphs == tokens(Runner(model, device, **options, graphs=False), batch, 30)


def test_graphs_captured_ahead(device):
    model = Transformer.random(spec(), "bf16", AT)
    runner = Runner(model, device, num_blocks=1024, padded=False)
    runner.warm_up(24)
    assert sorted(runner._graphs._captured) == [1, 2, 4, 8, 16, 24]
    tokens(runner, 20, 3)
    assert len(runner._graphs._captured) == 6


def test_the_blocks_that_fit_can_be_had(device):
    model = Transformer.random(spec(), "bf16", AT)
    free, blocks, _ = _blocks_that_fit(device, model, "bf16", (False, True), 4096)
    cache = PagedCache(model.spec, blocks, 16, torch.bfloat16, AT)
    held = sum(part.nbytes for part in cache.keys + cache.values)
    assert 0.5 * free < held < 0.95 * free
    del cache
    torch.cuda.empty_cache()


def test_time_memory_and_clock_are_read(device):
    model = Transformer.random(spec(), "bf16", AT)
    runner = Runner(model, device, num_blocks=1024, padded=False)
    device.reset_peak()
    for n in range(8):
        runner.pretend(n, 500)
    runner.step([], list(range(8)))  # captures
    _, timing = runner.step([], list(range(8)))
    assert 0 < timing.device_ms <= timing.wall_ms
    assert device.peak_bytes() > 0
    free, total = device.memory_bytes()
    assert 0 < free <= total
    about = device.describe()
    assert about["kind"] == "cuda"
    assert about["cuda"]
