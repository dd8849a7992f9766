"""Operator tables made from known formulas; every time is met exactly between the grid points."""

import gzip
import itertools

GEMM_MS = 2e-11
"""Per n*k; a row of activations adds a five-hundredth."""
ROWS = 500
CONTEXT_MS = 1e-9
"""Per prompt, head and length squared."""
READ_BYTES_PER_MS = 1.6e9
LINK_MS, LINK_BYTES_PER_MS = 0.005, 1e8


def gemm_ms(m, n, k):
    return GEMM_MS * n * k * (1 + m / ROWS)


def context_ms(batch, length, heads):
    return CONTEXT_MS * batch * heads * length**2


def generation_ms(batch, length, kv_heads):
    return 2 * 2 * 128 * batch * length * kv_heads / READ_BYTES_PER_MS


def allreduce_ms(size, gpus):
    return LINK_MS * gpus + size / LINK_BYTES_PER_MS


def write(path, header, rows):
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def matrix_tables(folder, gpu="h100", context_factor=1.0):
    """Write gemm, attention and all-reduce tables of a GPU."""
    sizes = (256, 1024, 4096, 16384, 65536)
    write(
        folder / f"{gpu}_gemm.csv.gz",
        "gpu,gemm_dtype,m,n,k,time_ms",
        [
            (gpu, "bfloat16", m, n, k, gemm_ms(m, n, k))
            for m, n, k in itertools.product((1, 64, 1024, 8192), sizes, sizes)
        ],
    )
    shape = "batch_size,isl,num_heads,num_key_value_heads,head_dim"
    heads = [(h, kv) for h in (8, 16, 32, 64) for kv in (1, 2, 4, 8, h) if kv <= h]
    write(
        folder / f"{gpu}_context_attention.csv",
        f"gpu,{shape},window_size,time_ms",
        [
            (gpu, b, isl, h, kv, 128, 0, context_factor * context_ms(b, isl, h))
            for (h, kv), b, isl in itertools.product(heads, (1, 16, 256), (1, 128, 16384))
            if b * isl <= 2**18
        ],
    )
    write(
        folder / f"{gpu}_generation_attention.csv",
        f"gpu,{shape},step,time_ms",
        [
            (gpu, b, 1, h, kv, 128, step, generation_ms(b, 1 + step, kv))
            for (h, kv), b, step in itertools.product(heads, (1, 64, 2048), (1, 127, 16383))
            if kv <= 8 and b * step <= 2**21
        ],
    )
    write(
        folder / f"{gpu}_custom_allreduce.csv",
        "gpu,num_gpus,message_size,time_ms,backend",
        [
            (gpu, n, size, allreduce_ms(size, n) * slow, backend)
            for n, size in itertools.product((2, 4, 8), (128, 2**20, 2**29))
            for backend, slow in (("vllm_graph", 1), ("vllm_eager", 9))
        ],
    )


DENSE_US = {"embedding": 3.0, "layernorm": 2.0, "gate_up_proj": 300.0, "final_layernorm": 4.0}
GAMMA = 2.0


def chunk_us(new, cached):
    return 5.0 + 0.01 * new + 1e-5 * new * (new + 2 * cached)


def decode_us(batch, length):
    return 0.01 * batch * length


def layer_tables(folder, gpu="RTXPRO6000", model="meta-llama/Llama-3.1-8B", tp=1):
    """Write dense, attention and per_sequence tables of one model."""
    layout = (gpu, model, tp)
    write(
        folder / "my_dense.csv",
        "gpu,model,tp,layer,tokens,time_us",
        [
            (*layout, layer, t, us * (1 + t / 100))
            for layer, us in DENSE_US.items()
            for t in (1, 256, 2048)
        ],
    )
    powers = [16 * 2**i for i in range(8)]
    kv = [0, 256, 1024, 4096, 16384]
    lengths = [16, 256, 4096, 16384]
    rows = [(c, p, 0, 0, chunk_us(c, p)) for c in powers for p in kv]
    rows += [(0, 0, b, n, decode_us(b, n)) for b in (1, 16, 256) for n in lengths]
    rows += [
        (c, p, b, n, chunk_us(c, p) + GAMMA * decode_us(b, n))
        for c, p, b, n in itertools.product(powers, kv, (1, 16, 128), lengths)
    ]
    write(
        folder / "my_attention.csv",
        "gpu,model,tp,prefill_chunk,kv_prefill,n_decode,kv_decode,time_us",
        [(*layout, *row) for row in rows],
    )
    write(
        folder / "my_per_sequence.csv",
        "gpu,model,tp,layer,sequences,time_us",
        [
            (*layout, layer, s, us + s)
            for layer, us in (("lm_head", 700), ("sampler", 20))
            for s in (1, 256)
        ],
    )
