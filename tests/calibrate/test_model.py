"""The real model gives the logits of `transformers` with the same weights, step by step."""

import json
import struct

import pytest
import torch

from calibrate.device import Device
from calibrate.model import Transformer
from calibrate.runner import Chunk, Runner
from calibrate.weights import Constants
from sim.costs.catalogue import Model, model_named
from sim.types import BadInput

CPU = Device.open("cpu")
TOLERANCE = 1e-4

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SPEC = {
    "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48, "gated": True,
    "vocab": 97, "max_length": 64, "norm": "rmsnorm", "positions": "rope", "qk_norm": False,
    "tied_embeddings": False, "bias": "none", "params_published": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
FAMILIES = {
    "llama": ("Llama", {}, {}),
    "llama-mha-tied": (
        "Llama",
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
        {"kv_heads": 4, "tied_embeddings": True},
    ),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3}, {}),
    "mistral": ("Mistral", {"sliding_window": None}, {}),
    "qwen2": (
        "Qwen2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"bias": "qkv"},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}, {"head_dim": 16, "qk_norm": True}),
    "opt": (
        "OPT",
        {"ffn_dim": 48, "word_embed_proj_dim": 32},
        {"kv_heads": 4, "gated": False, "norm": "layernorm", "positions": "learned",
         "tied_embeddings": True, "bias": "all"},
    ),
}  # fmt: skip
"""Name -> `transformers`' name of the architecture, and what differs from `SMALL` and `SPEC`."""
NOT_OF_OPT = ("intermediate_size", "num_key_value_heads")


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """The model of `transformers`, and ours read from the checkpoint that it saved."""
    import transformers  # takes seconds, which no other test should wait for

    name, changed, spec = FAMILIES[request.param]
    sizes = {k: v for k, v in SMALL.items() if name != "OPT" or k not in NOT_OF_OPT}
    config = getattr(transformers, f"{name}Config")(**sizes | changed)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # every bias and norm counts
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1  # sharded
    spec = Model(name=request.param, **SPEC | spec)
    return theirs, Transformer.load(spec, folder, "fp32", CPU.torch_device)


def prompts(vocab, *lens):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lens]


def play(runner, vocab):
    """Prefill, chunked prefill beside decodes, decodes; return every row and the histories."""
    history = dict(enumerate(prompts(vocab, 7, 13, 20)))
    whole = {number: list(tokens) for number, tokens in history.items()}
    steps = [
        ([(0, 0, 7), (1, 0, 5)], []),
        ([(1, 5, 9)], [0]),
        ([(1, 9, 13), (2, 0, 20)], [0]),
        ([], [0, 1, 2]),
        ([], [2, 0]),
    ]
    rows = []
    for chunks, decodes in steps:
        logits = runner.logits([Chunk(n, history[n][a:b], a) for n, a, b in chunks], decodes)
        for (n, _, end), row in zip(chunks, logits, strict=False):
            rows.append((n, end - 1, row))
            if end == len(history[n]):
                whole[n].append(int(row.argmax()))
        for n, row in zip(decodes, logits[len(chunks) :], strict=True):
            rows.append((n, len(whole[n]) - 1, row))
            whole[n].append(int(row.argmax()))
    return rows, whole


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_logits_equal_those_of_transformers(both, padded, record_property):
    theirs, ours = both
    runner = Runner(ours, CPU, num_blocks=40, block_size=4, padded=padded)
    rows, whole = play(runner, ours.spec.vocab)
    with torch.no_grad():
        expected = {n: theirs(torch.tensor([tokens])).logits[0] for n, tokens in whole.items()}
    worst = max(float((row - expected[n][place]).abs().max()) for n, place, row in rows)
    spread = min(float(row.std()) for _, _, row in rows)
    assert worst <= TOLERANCE
    assert spread > 100 * TOLERANCE  # logits that say something
    record_property(
        "evidence",
        f"logits against transformers, {ours.spec.name}, {'padded' if padded else 'packed'} "
        f"(fp32, CPU; prefill, chunked, mixed and decode steps): largest difference {worst:.1e}",
    )


def test_random_weights_follow_the_seed():
    spec = model_named("tiny-llama")
    one, same, other = (
        Transformer.random(spec, "fp32", CPU.torch_device, seed) for seed in (0, 0, 1)
    )
    matrix = one.layers[3].down.weight
    assert torch.equal(matrix, same.layers[3].down.weight)
    assert not torch.equal(matrix, other.layers[3].down.weight)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_runs(dtype):
    model = Transformer.random(Model(name="m", **SPEC), dtype, CPU.torch_device)
    for padded in (False, True):
        runner = Runner(model, CPU, num_blocks=40, block_size=4, padded=padded)
        rows, _ = play(runner, 97)
        assert all(row.isfinite().all() and row.dtype == model.dtype for _, _, row in rows)


def write_checkpoint(path, tensors):
    """A safetensors file by its published layout; tensors of zeros {name: shape}."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        end = at + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


def load(path):
    return Transformer.load(Model(name="m", **SPEC), path, "fp32", CPU.torch_device)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(BadInput, match="nowhere: no safetensors file"):
        load(tmp_path / "nowhere")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not one")
    with pytest.raises(BadInput, match=r"model\.safetensors: not a safetensors file"):
        load(file)
    write_checkpoint(file, {"model.embed_tokens.weight": [97, 32]})
    with pytest.raises(BadInput, match=r"no weight 'layers.0.input_layernorm.weight'; it holds"):
        load(file)
    write_checkpoint(file, {"model.embed_tokens.weight": [96, 32]})
    with pytest.raises(BadInput, match=r"'embed_tokens.weight' has shape \[96, 32\], .*\[97, 32\]"):
        load(file)


def test_a_rotary_scaling_that_is_not_known_is_refused(tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", {"model.embed_tokens.weight": [97, 32]})
    (tmp_path / "config.json").write_text('{"rope_scaling": {"type": "yarn", "factor": 4.0}}')
    with pytest.raises(BadInput, match="rotary scaling 'yarn'; valid: default, llama3"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json: not JSON"):
        load(tmp_path)


def test_rotary_frequencies_by_hand():
    assert Constants(rope_theta=16.0).rope_frequencies(4).tolist() == [1.0, 0.25]
