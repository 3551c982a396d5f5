"""Every Triton kernel, on a CPU the form that runs there instead, and attention without a mask, against definitions.

Inputs are drawn on the CPU, where the definition runs, and moved to the device for the kernel. Sizes are odd, rows are
ragged, strides are not those of new tensors. On a CPU the Triton kernels are interpreted, on small tiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest import mock

import sympy
import torch
from torch import Tensor

from sharp_compile.kernels import causal_attention, mask_formula, masked_attention
from sharp_compile.kernels.attention_column_sums import aten
from sharp_compile.kernels.attention_column_sums import reference as column_sums_reference
from sharp_compile.kernels.greedy_cosine_dedup import blocked
from sharp_compile.kernels.greedy_cosine_dedup import reference as dedup_reference
from sharp_compile.kernels.multi_gather import reference as gather_reference
from sharp_compile.short_repr import brief

from .rows import Verdict

Case = Callable[[torch.dtype], tuple[Tensor, Tensor]]
"""Given the type of its inputs, returns what a kernel gave and what is right, both on the CPU."""

_TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""By the type of what comes out, shares of its largest number. Float32: sums of exponentials, in another order than
the definition's: far above what was seen, a few 1e-7, and far below what a wrong factor or a lost row makes. The others
round weights and sums to 11 and to 8 bits. Selected and copied numbers have to be the same to the bit."""

_NUMPY_IS_NEWER = "only 0-dimensional arrays can be converted to Python scalars"
"""What Triton 3.6's interpreter fails with from numpy 2.5 on, at each ``if`` of a kernel."""


_SLACK, _SCALE, _WINDOW, _HIDDEN = 5, 0.3, 40, 20
_IN_A_BLOCK = sympy.And(
    sympy.Eq(mask_formula.query_symbol(0), mask_formula.key_symbol(0)), sympy.Ge(mask_formula.query_symbol(0), 0)
)
_IS_REAL = sympy.Ne(mask_formula.key_symbol(0), 0)
_FORMULAS = {
    "window": sympy.And(mask_formula.CAUSAL, sympy.Gt(mask_formula.KEY, mask_formula.QUERY - _WINDOW), _IS_REAL),
    "kept": sympy.And(mask_formula.CAUSAL, _IS_REAL),
    "blocks": sympy.Or(mask_formula.CAUSAL, _IN_A_BLOCK),
}
"""What ``masked_attention`` is told; blocks are those of images in Gemma."""


def check(device: str) -> Iterator[Verdict]:
    """Yield a verdict for each kernel and type of its inputs."""
    if find_spec("triton") is None:
        yield Verdict("kernels", "Triton", None, "not installed: no kernel to compare")
    else:
        yield from _verdicts(_triton_cases(device), _dtypes(device), "" if device == "cuda" else " (interpreted)")
    if device == "cpu":
        cases = _plain_cases() | _attention_cases(device)
        yield from _verdicts(cases, (torch.float32, torch.bfloat16), " (plain PyTorch)")
    else:
        yield from _verdicts(_attention_cases(device), _dtypes(device), "")


def _dtypes(device: str) -> tuple[torch.dtype, ...]:
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    return torch.float32, torch.bfloat16 if device == "cuda" else torch.float16


def _verdicts(kernels: dict[str, dict[str, Case]], dtypes: tuple[torch.dtype, ...], note: str) -> Iterator[Verdict]:
    for kernel, cases in kernels.items():
        for dtype in dtypes:
            name, start = f"{kernel}, {str(dtype).removeprefix('torch.')}{note}", time.perf_counter()
            right, told = _compare(cases, dtype)
            yield Verdict("kernels", name, right, told, time.perf_counter() - start)


def _compare(cases: dict[str, Case], dtype: torch.dtype) -> tuple[bool | None, str]:
    """Run all cases of a kernel: whether they are right, and the largest error or the first case that is wrong."""
    worst = 0.0
    for name, case in cases.items():
        try:
            actual, expected = case(dtype)
        except Exception as error:  # whatever a compiler or a driver raises
            if _NUMPY_IS_NEWER in str(error):
                return None, "this numpy is newer than Triton's interpreter, which can't branch with it"
            return False, f"{name}: {type(error).__name__}: {brief(error)}"
        if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
            made, right = (f"{each.dtype} of {list(each.shape)}" for each in (actual, expected))
            return False, f"{name}: {made} instead of {right}"
        off = _error(actual, expected)
        if not off <= _TOLERANCES.get(expected.dtype, 0):
            return False, f"{name}: off by {off:.1e} of the largest number" if off < 1e9 else f"{name}: not finite"
        worst = max(worst, off)
    return True, f"{len(cases)} cases, " + (f"off by {worst:.0e} at most" if worst else "the same to the bit")


def _error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest number; infinite where one is not finite."""
    if expected.dtype == torch.bool:
        return (actual != expected).float().mean().item()
    if not expected.is_floating_point():  # the bits of what was copied
        return float(not actual.equal(expected))
    actual, expected = actual.float(), expected.float()
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((actual - expected).abs().max() / largest).nan_to_num(torch.inf, torch.inf).item()


def _triton_cases(device: str) -> dict[str, dict[str, Case]]:
    from sharp_compile.kernels.attention_column_sums import triton as column_sums
    from sharp_compile.kernels.greedy_cosine_dedup import triton as dedup
    from sharp_compile.kernels.multi_gather import triton as gather

    sums, how = column_sums.attention_column_sums, None
    if device == "cpu":
        # A block of the size that a GPU gets takes the interpreter half a minute.
        how = dedup.Tiles(64, 32, 16, 2, 4, 1)
        # Interpreted functions are none that torch knows to wrap.
        sums = mock.patch.object(column_sums, "wrap_triton", lambda kernel: kernel)(sums)
    return {
        "attention_column_sums": _column_sums_cases(sums, device),
        "greedy_cosine_dedup": _dedup_cases(partial(dedup.greedy_cosine_dedup, how=how), device),
        "multi_gather": _gather_cases(gather.multi_gather, device),
    }


def _plain_cases() -> dict[str, dict[str, Case]]:
    return {
        "attention_column_sums": _column_sums_cases(aten.attention_column_sums, "cpu"),
        "greedy_cosine_dedup": _dedup_cases(blocked.greedy_cosine_dedup, "cpu"),
    }


def _column_sums_cases(kernel: Callable[..., Tensor], device: str) -> dict[str, Case]:
    """Sizes are B, H, Hkv, T, S, D. A mask hides a tenth of the keys, a whole row, and the padding of a row."""

    def case(sizes: tuple[int, ...], mask: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        batch, heads, kv_heads, rows, length, width = sizes
        generator = torch.Generator().manual_seed(sum(sizes))
        query = torch.randn(batch, rows, heads, width, generator=generator).to(dtype).transpose(1, 2)
        key = torch.randn(batch, length, kv_heads, width, generator=generator).to(dtype).transpose(1, 2)
        weight = torch.rand(batch, rows, generator=generator)
        weight[-1, 0] = 0
        visible = torch.rand(batch, 1, rows, length, generator=generator) > 0.1
        visible[0, :, rows // 2] = False
        visible[-1, ..., : length // 3] = False
        given = {"none": None, "boolean": visible, "added": torch.zeros(visible.shape, dtype=dtype)}[mask]
        if given is not None and given.dtype != torch.bool:
            given = given.masked_fill(~visible, torch.finfo(dtype).min)
        inputs = query, key, weight, given
        moved = (None if each is None else each.to(device) for each in inputs)
        expected = column_sums_reference.attention_column_sums(*inputs, 0.3)
        return kernel(*moved, 0.3).cpu(), expected

    return {
        "7 query heads a key head, 11 rows": partial(case, (2, 7, 1, 11, 257, 64), "none"),
        "one row, 80 numbers a head, boolean mask": partial(case, (2, 4, 4, 1, 63, 80), "boolean"),
        "14 heads of 128, added mask": partial(case, (1, 14, 2, 5, 301, 128), "added"),
        "heads of 256, boolean mask": partial(case, (2, 2, 1, 21, 150, 256), "boolean"),
        "one token": partial(case, (2, 2, 2, 1, 1, 16), "none"),
    }


def _dedup_cases(kernel: Callable[..., Tensor], device: str) -> dict[str, Case]:
    """Vectors of some kinds: two of a kind are alike to 0.97 or more, others to 0.7 at most.

    So no rounding comes near the threshold. Rows end at different places, and have budgets of their own.
    """

    def case(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        batch, length, width, kinds = sizes
        generator = torch.Generator().manual_seed(length)
        of_kind = torch.nn.functional.normalize(torch.randn(kinds, width, generator=generator), dim=-1)
        noise = torch.nn.functional.normalize(torch.randn(batch, length, width, generator=generator), dim=-1)
        vectors = of_kind[torch.randint(kinds, (batch, length), generator=generator)] + 0.1 * noise
        vectors[:, ::5] *= 3
        vectors[:, 1::9] = 0
        order = torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])
        candidates = torch.tensor([length - row * (length // 3) for row in range(batch)])
        budget = torch.tensor([kinds // 2, kinds + length // 5, 1][:batch])
        inputs = vectors.to(dtype), order, candidates, budget
        expected = dedup_reference.greedy_cosine_dedup(*inputs, 0.85)
        return kernel(*(each.to(device) for each in inputs), 0.85).cpu(), expected

    cases: dict[str, Case] = {
        "two rows of 301 tokens": partial(case, (2, 301, 96, 60)),
        "three rows of 130 tokens": partial(case, (3, 130, 72, 20)),
    }
    if device == "cuda":  # several of its blocks
        cases["a row of 1,601 tokens of 3,584 numbers"] = partial(case, (1, 1601, 3584, 300))
    return cases


def _gather_cases(kernel: Callable[..., list[Tensor]], device: str) -> dict[str, Case]:
    def case(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(count)
        length, kept = 101, 37
        values = [
            torch.randn(1 if number % 3 == 2 else 2, 1 + number % 4, 3 + 17 * number, length, generator=generator)
            .to(dtype)
            .transpose(2, 3)
            for number in range(count)
        ]
        positions = torch.stack([torch.randperm(length, generator=generator)[:kept].sort().values for _ in range(2)])
        actual = kernel([each.to(device) for each in values], positions.to(device))
        return _bits(actual), _bits(gather_reference.multi_gather(values, positions))

    return {"one tensor": partial(case, 1), "nine tensors, of which eight go together": partial(case, 9)}


def _bits(tensors: list[Any]) -> Tensor:
    return torch.cat([each.cpu().contiguous().flatten().view(torch.int16) for each in tensors])


def _attention_cases(device: str) -> dict[str, dict[str, Case]]:
    return {"causal_attention": _causal_cases(device), "masked_attention": _masked_cases(device)}


def _causal_cases(device: str) -> dict[str, Case]:
    """Sizes are B, H, Hkv, S, D. What padding gets is not compared, the cache is longer than the sequence."""

    def case(sizes: tuple[int, ...], padding: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        *_, length, _ = sizes
        query, key, value = _drawn(sizes, length, length + _SLACK, dtype)
        visible = torch.ones(len(query), length, dtype=torch.bool)
        places = {"front": slice(100), "behind": slice(-100, None), "between": slice(50, 150), "none": slice(0)}
        visible[-1, places[padding]] = False
        order = torch.ones(length, length, dtype=torch.bool).tril()
        expected = _attention(query, key, value, order & visible[:, None, None], _SCALE)
        moved = (each.to(device) for each in (query, key, value, visible))
        actual = causal_attention.causal_attention(*moved, _SCALE).cpu()
        return actual.transpose(1, 2)[visible], expected.transpose(1, 2)[visible]

    return {
        "padding in front, 7 query heads a key head": partial(case, (2, 7, 1, 301, 64), "front"),
        "padding behind, 14 heads of 128": partial(case, (3, 14, 2, 301, 128), "behind"),
        "padding between, heads of 64": partial(case, (2, 2, 2, 513, 64), "between"),
        "no padding, 4 heads of 128": partial(case, (2, 4, 2, 301, 128), "none"),
    }


def _masked_cases(device: str) -> dict[str, Case]:
    """Sizes are B, H, Hkv, S, D. The first keys of the last row are padding, and its first queries see nothing."""

    def case(sizes: tuple[int, ...], kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        batch, *_, length, _ = sizes
        columns = torch.arange(length).expand(batch, -1)
        rows = columns[:, 2::3] if kind == "kept" else columns
        query, key, value = _drawn(sizes, rows.shape[1], length + _SLACK, dtype)
        real = torch.ones(batch, length, dtype=torch.bool)
        real[-1, :_HIDDEN] = False
        block = ((columns - _HIDDEN) // 64).where((columns - _HIDDEN) % 64 < 48, -1)
        of_query, of_key = {"blocks": ([block], [block])}.get(kind, ([], [real]))
        q, k = rows[:, :, None], columns[:, None]
        visible = {
            "window": (k <= q) & (k > q - _WINDOW) & real[:, None],
            "kept": (k <= q) & real[:, None],
            "blocks": (k <= columns[:, :, None]) | ((block[:, None] == block[:, :, None]) & (block[:, :, None] >= 0)),
        }[kind]
        expected = _attention(query, key, value, visible[:, None], None)
        tensors = [each.to(device) for each in (query, key, value, rows, columns)]
        known = [[each.to(device) for each in of] for of in (of_query, of_key)]
        actual = masked_attention.masked_attention(*tensors, *known, mask_formula.write(_FORMULAS[kind]), None)
        return actual.cpu(), expected

    return {
        "a window of 40, heads of 64": partial(case, (2, 6, 2, 301, 64), "window"),
        "a third of the rows against all keys, 7 query heads a key head": partial(case, (2, 7, 1, 901, 128), "kept"),
        "blocks that see all of themselves": partial(case, (2, 4, 4, 301, 64), "blocks"),
    }


def _drawn(sizes: tuple[int, ...], rows: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value, in memory a token after the other."""
    batch, heads, kv_heads, _, width = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    query, key, value = (
        torch.randn(batch, tokens, count, width, generator=generator).to(dtype).transpose(1, 2)
        for tokens, count in ((rows, heads), (keys, kv_heads), (keys, kv_heads))
    )
    return query, key, value


def _attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """Return attention by its definition, computed in float32; a query that sees nothing gets zeros.

    ``visible`` is ``[B or 1, 1, S, L]``; keys after L are no one's.
    """
    share, length = query.shape[1] // key.shape[1], visible.shape[-1]
    key, value = (each[:, :, :length].float().repeat_interleave(share, 1) for each in (key, value))
    products = query.float() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = products.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
    return (weights @ value).to(query.dtype)
