"""The paged kernel without a GPU, where Triton is installed; tests/gpu runs it on one."""

import os

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

from calibrate import attention, paged  # noqa: E402
from sim.costs.catalogue import model_named  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = {
    "q": "*bf16", "k": "*bf16", "v": "*bf16", "out": "*bf16",
    "table": "*i32", "rows": "*i64", "lengths": "*i64", "spans": "*i64",
    "partial": "*fp32", "most": "*fp32", "total": "*fp32", "scale": "fp32", "columns": "i32",
}  # fmt: skip


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 from the start")
@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton's interpreter takes arrays of one element for numbers",
)
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
@pytest.mark.parametrize("model", ["llama-2-13b", "llama-3.1-8b", "qwen2.5-7b"])
@pytest.mark.parametrize("parts", [1, 4, 16])
def test_the_interpreted_kernel_against_the_loop(model, parts, monkeypatch):
    monkeypatch.setattr(paged, "_parts", lambda *_: parts)
    at = torch.device("cpu")
    problem = attention.probe_paged(paged.paged_attention, model_named(model), torch.float32, at)
    assert problem is None


@pytest.mark.skipif(INTERPRETED, reason="interpreted")
@pytest.mark.parametrize("model", ["llama-2-13b", "llama-3.1-8b", "qwen2.5-7b"])
@pytest.mark.parametrize("parts", [1, 32])
def test_the_kernel_compiles_to_machine_code_of_hopper(model, parts):
    spec = model_named(model)
    shape = {"heads": spec.heads, "kv_heads": spec.kv_heads, "dim": spec.head_dim}
    rows = max(paged.MIN_QUERY_ROWS, triton.next_power_of_2(spec.heads // spec.kv_heads))
    tiles = {"page_size": 16, "query_rows": rows, "tile": paged.TILE, "parts": parts}
    join = {"dim": spec.head_dim, "parts": parts, "parts_tile": parts}
    attend = compiled(paged._attend_part, shape | tiles)
    assert attend.asm["cubin"]
    tile = f"memdesc<2x{paged.TILE}x{spec.head_dim}xbf16"  # two buffers: loads overlap work
    assert attend.asm["ttgir"].count(f"local_alloc : () -> !ttg.{tile}") == 2
    assert compiled(paged._join_parts, join).asm["cubin"]


def compiled(kernel, constants):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else TYPES[n] for n in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {
        (number,): [["tt.divisibility", 16]]  # as a launch finds them
        for number, name in enumerate(names)
        if signature[name].startswith("*") or name == "columns"
    }
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=aligned)
    hopper = GPUTarget("cuda", 90, 32)
    stages = paged._stages(torch.empty(1, 128, dtype=torch.bfloat16))
    return triton.compile(source, target=hopper, options={"num_warps": 4, "num_stages": stages})
