"""What becomes of the scoring in a graph: fused kernels, and memory that grows with the length, not its square."""

import re
from pathlib import Path

import pytest
import torch
from sharp_compile.kernels.keep import keep_counts, keep_positions
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from sharp_compile.selectors import Context
from sharp_compile.selectors.context import among
from tests.selectors.test_selectors import rule
from tests.toy import Toy, toy_inputs


def selection(length, **options):
    """The scoring and selection of `sharp`, and its inputs: frames of 64 tokens, 16 text tokens after them."""
    generator = torch.Generator().manual_seed(0)
    query, unrotated = (torch.randn(1, heads, length, 32, generator=generator) for heads in (4, 2))
    hidden, table = (torch.randn(1, length, width, generator=generator) for width in (128, 32))
    is_visual = (torch.arange(length) < length - 16)[None]
    frame = torch.where(is_visual, torch.arange(length) // 64, -1)
    score, kept = rule(selector="sharp", **options), 16 + length // 10

    def select(query, unrotated, hidden, is_visual, frame, table):
        def rotate(keys):
            return keys * table[:, None]

        padding = torch.zeros_like(is_visual)
        kinds = is_visual, padding, padding
        counts = keep_counts(*kinds, is_visual.sum(1), kept)
        state = among(query), 4, rotate(unrotated), unrotated
        context = Context(*state, hidden, is_visual, padding, frame, None, None, kept, counts.visual, 0, rotate)
        return keep_positions(score(context), *kinds, counts, kept)

    return select, (query, unrotated, hidden, is_visual, frame, table)


def test_inductor_fuses_the_scoring():
    """Two products of matrices (text, segments) and a few loops, where eager mode runs an operator at a time."""
    select, inputs = selection(512)
    _, (code,) = run_and_get_code(torch.compile(select), *inputs)
    loops = len(re.findall(r"^cpp_fused\w* = ", code, re.MULTILINE))
    products = len(re.findall(r"extern_kernels\.(?:bmm|mm|addmm|baddbmm)\(", code))
    operators = [node for node in make_fx(select)(*inputs).graph.nodes if node.op == "call_function"]
    assert products == 2
    assert 0 < loops < len(operators) / 5


def grown(call, *inputs):
    """Bytes by which the process grew at its largest while `call` ran."""

    def status(name):
        return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    call(*inputs)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
    except OSError:
        pytest.skip("this system does not let a process measure its largest size")
    before = status("VmRSS")
    call(*inputs)
    return status("VmHWM") - before


@pytest.mark.slow
def test_memory_grows_with_the_length():
    """At 8192 tokens one matrix of a byte for each pair would be 64 MiB."""
    for options in ({}, {"segment": {"count": 8}, "dedup": "hidden"}):
        torch._dynamo.reset()
        select, inputs = selection(8192, **options)
        assert grown(torch.compile(select), *inputs) < 8192**2 / 2


@pytest.mark.parametrize("segment", ["scores", "forward", {"count": 3}, None])
def test_no_tensor_of_the_graph_has_a_pair_of_lengths(segment):
    largest = []

    def inner(module, inputs):
        for node in module.graph.nodes:
            value = node.meta.get("example_value")
            if isinstance(value, torch.Tensor) and value.shape.count(1031) > 1:
                largest.append(node)
        return module.forward

    torch.compile(Toy(), backend="sharp", options={"segment": segment, "inner": inner})(**toy_inputs(visual=1025))
    assert largest == []
