"""Attention kernels over packed tokens, and the choice among them.

A kernel gets queries [T, heads, head_dim], keys and values [K, kv_heads, head_dim] of sequences
one after another, and a `Group` that says where each begins. Query `i` of a sequence sees its
first `k_len - q_len + i + 1` keys. `loop` is the plainest and what the others are checked
against, on the device itself, before one is chosen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from sim.costs.catalogue import Model

PROBE_TOLERANCE = 2e-2
"""Largest relative difference between rows of a kernel and of the loop: bf16 has 8 bits."""

PROBES = (
    ((5, 130, 1), (5, 130, 1)),
    ((3, 70, 1), (40, 70, 200)),
    ((1, 1, 1), (40, 70, 200)),
)
"""Queries and keys of the sequences a kernel is tried on: new prompts, cached ones, decodes."""


@dataclass(frozen=True)
class Group:
    """Sequences that attend in one call.

    Attributes:
        q_lens: queries of each sequence.
        k_lens: keys of each sequence, its queries' own included.
        cu_q: running sums of `q_lens`, from 0 [n + 1], int32.
        cu_k: running sums of `k_lens`, from 0 [n + 1], int32.
        seen: for rectangles with cached prefixes, which keys a query sees [n, 1, q, k].
    """

    q_lens: tuple[int, ...]
    k_lens: tuple[int, ...]
    cu_q: Tensor
    cu_k: Tensor
    seen: Tensor | None = None

    @classmethod
    def of(
        cls,
        q_lens: Sequence[int],
        k_lens: Sequence[int],
        device: torch.device,
        seen: Tensor | None = None,
    ) -> Group:
        """Return the group with its running sums on `device`."""
        sums = torch.tensor([[0, *q_lens], [0, *k_lens]]).cumsum(1).to(device, torch.int32)
        return cls(tuple(q_lens), tuple(k_lens), sums[0], sums[1], seen)


Kernel = Callable[[Tensor, Tensor, Tensor, Group], Tensor]


def loop(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
    """One `scaled_dot_product_attention` per sequence: the reference."""
    queries, keys, values = (
        torch.split(x, list(lens))
        for x, lens in ((q, group.q_lens), (k, group.k_lens), (v, group.k_lens))
    )
    return torch.cat([_one(*each) for each in zip(queries, keys, values, strict=True)])


def _one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    new, total = q.shape[0], k.shape[0]
    seen = None
    if 1 < new < total:
        seen = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = sdpa(q, k, v, attn_mask=seen, is_causal=new == total > 1, enable_gqa=True)
    return out[0].transpose(0, 1)


def rectangle(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
    """Padded: every sequence has as many queries and keys as the others.

    Without a cached prefix the causal mask hides padding too, which stands to the right.
    """
    n = len(group.q_lens)
    q, k, v = (x.reshape(n, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    if group.seen is None:
        out = sdpa(q, k, v, is_causal=True, enable_gqa=True)
    else:
        # fused kernels with a mask want equal heads
        repeats = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        out = sdpa(q, k, v, attn_mask=group.seen)
    return out.transpose(1, 2).flatten(0, 1)


def varlen() -> Kernel:
    """Return `torch.nn.attention.varlen`, whose options differ between torch versions.

    Raises:
        ImportError: this torch has none.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    if "enable_gqa" in known:  # earlier versions take fewer KV heads without being told
        options["enable_gqa"] = True

    def attend(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
        longest = max(group.q_lens), max(group.k_lens)
        out = varlen_attn(q, k, v, group.cu_q, group.cu_k, *longest, **options)
        assert isinstance(out, Tensor)  # a pair only when more is asked for
        return out

    return attend


class Flex:
    """FlexAttention with the block mask of the packed sequences, made once per step.

    Args:
        compiled: by torch.compile; without, it is slow and for checks.
    """

    def __init__(self, *, compiled: bool = True) -> None:
        from torch.nn.attention import flex_attention

        self._api = flex_attention
        self._attend: Callable[..., Any] = flex_attention.flex_attention
        if compiled:
            self._attend = torch.compile(self._attend, dynamic=True)
        self._group: Group | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
        """Attend."""
        if group is not self._group:
            self._mask, self._group = self._block_mask(group, q.device), group
        q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (q, k, v))
        out: Tensor = self._attend(q, k, v, block_mask=self._mask, enable_gqa=True)
        return out[0].transpose(0, 1)

    def _block_mask(self, group: Group, device: torch.device) -> Any:
        lens_q, lens_k = group.cu_q.diff(), group.cu_k.diff()
        numbers = torch.arange(len(group.q_lens), device=device)
        owner_q, owner_k = numbers.repeat_interleave(lens_q), numbers.repeat_interleave(lens_k)
        place_k = torch.arange(len(owner_k), device=device) - group.cu_k[owner_k]
        place_q = torch.arange(len(owner_q), device=device) - group.cu_q[owner_q]
        place_q = place_q + (lens_k - lens_q)[owner_q]

        def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (owner_q[query] == owner_k[key]) & (place_k[key] <= place_q[query])

        return self._api.create_block_mask(
            seen, None, None, len(owner_q), len(owner_k), device=str(device)
        )


PADDED: tuple[str, Kernel, str] = ("sdpa-padded", rectangle, "")
"""Name, kernel and note of padded batches, as of `choose_packed`."""


def choose_packed(spec: Model, dtype: torch.dtype, device: torch.device) -> tuple[str, Kernel, str]:
    """Return name, kernel and a note on those that were passed over.

    On CUDA: varlen, else FlexAttention, else the loop; each is run on a small ragged batch of the
    model's heads and compared with the loop first.
    """
    if device.type != "cuda":
        return "loop", loop, "one attention call per sequence: the device is no GPU"
    refused: list[str] = []
    candidates: list[tuple[str, Callable[[], Kernel]]] = [("varlen", varlen), ("flex", Flex)]
    for name, make in candidates:
        try:
            kernel = make()
            problem = probe(kernel, spec, dtype, device)
        except Exception as error:  # kernels fail in many ways: import, compile, launch
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            if problem is None:
                return name, kernel, "; ".join(refused)
        refused.append(f"{name} is not available ({problem})")
    return "loop", loop, "; ".join(refused)


@torch.inference_mode()
def probe(kernel: Kernel, spec: Model, dtype: torch.dtype, device: torch.device) -> str | None:
    """Return what is wrong with a kernel on a small ragged batch, `None` if nothing is."""
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    for q_lens, k_lens in PROBES:
        q = normal(sum(q_lens), spec.heads, spec.head_dim)
        k, v = (normal(sum(k_lens), spec.kv_heads, spec.head_dim) for _ in range(2))
        group = Group.of(q_lens, k_lens, device)
        worst = difference(kernel(q, k, v, group), loop(q, k, v, group))
        if not worst <= PROBE_TOLERANCE:
            return f"differs from the loop by {worst:.2g}"
    return None


def difference(out: Tensor, expected: Tensor) -> float:
    """Return the largest relative difference of a row; nan where there is a nan."""
    out, expected = out.flatten(1).float(), expected.flatten(1).float()
    return float(((out - expected).norm(dim=1) / expected.norm(dim=1)).max())


PagedKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""As `calibrate.paged.paged_attention`."""


def choose_paged(
    spec: Model, dtype: torch.dtype, device: torch.device
) -> tuple[PagedKernel | None, str]:
    """Return the kernel that decodes straight from KV pages, or `None` and why there is none."""
    if device.type != "cuda":
        return None, ""
    try:
        from calibrate.paged import paged_attention

        problem = probe_paged(paged_attention, spec, dtype, device)
    except Exception as error:  # Triton fails in many ways: import, compile, launch
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem is None:
        return paged_attention, ""
    return None, f"paged decode is not available ({problem}): pages are gathered, no CUDA graphs"


@torch.inference_mode()
def probe_paged(
    kernel: PagedKernel, spec: Model, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Return what is wrong with a paged kernel on a small batch, `None` if nothing is."""
    page, lengths = 16, [1, 77, 300]
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    q = normal(len(lengths), spec.heads, spec.head_dim)
    keys, values = (normal(64 * page, spec.kv_heads, spec.head_dim) for _ in range(2))
    table = torch.randperm(64, generator=generator, device=device)[:60].int().reshape(3, 20)
    rows, seen = torch.arange(3, device=device), torch.tensor(lengths, device=device)
    places = torch.cat([torch.arange(n, device=device) for n in lengths])
    slots = table[rows.repeat_interleave(seen), places // page].long() * page + places % page
    expected = loop(q, keys[slots], values[slots], Group.of([1, 1, 1], lengths, device))
    for spans in (seen, torch.full_like(seen, 320)):
        worst = difference(kernel(q, keys, values, table, rows, seen, spans, page), expected)
        if not worst <= PROBE_TOLERANCE:
            return f"differs from the loop by {worst:.2g}"
    return None
