"""The profile of a call."""

import gzip
import json

import torch

from sharp_compile.tools.check.plan import Way
from sharp_compile.tools.check.trace import _union, profiled


def test_the_time_that_spans_cover_and_the_gaps_between():
    assert _union([(0, 10), (5, 12), (20, 30), (22, 24), (31, 32)]) == (23, [8, 1])


def test_products_take_the_most(tmp_path):
    matrix = torch.randn(600, 600)
    file = tmp_path / "trace.json.gz"
    (profile,) = profiled(Way("sharp", 0.1), 100, lambda: [matrix @ matrix for _ in range(20)], file)
    assert profile.kernels[0].name == "aten::mm"
    assert profile.kernels[0].count == 20
    assert 0 < profile.kernels[0].seconds <= profile.busy_s <= profile.span_s
    assert len(profile.kernels) <= 10
    assert json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
