"""The profile of a call."""

import gzip
import json

import pytest
import sympy
import torch
from sharp_compile.kernels import causal_attention, mask_formula, masked_attention

from sharp_compile.tools.check.plan import Way
from sharp_compile.tools.check.trace import _path, _short, _union, profiled


def test_the_time_that_spans_cover_and_the_gaps_between():
    assert _union([(0, 10), (5, 12), (20, 30), (22, 24), (31, 32)]) == (23, [8, 1])


def test_products_take_the_most(tmp_path):
    matrix = torch.randn(600, 600)
    file = tmp_path / "trace.json.gz"
    profile, path = profiled(Way("sharp", 0.1), 100, 4, lambda: [matrix @ matrix for _ in range(20)], file)
    assert profile.kernels[0].name == "aten::mm"
    assert profile.kernels[0].count == 20
    assert 0 < profile.kernels[0].seconds <= profile.busy_s <= profile.span_s
    assert len(profile.kernels) <= 10
    assert json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert path.right is False
    assert path.told.endswith("no kernel of attention")


def attention(causal):
    """A decoder of three layers: as many that are causal, and another under a formula."""
    query, places = torch.randn(1, 2, 8, 16), torch.arange(8)[None]
    for number in range(3):
        if number < causal:
            causal_attention.causal_attention(query, query, query, places >= 2, None)
        else:
            formula = mask_formula.write(sympy.Ge(mask_formula.KEY, 0))
            masked_attention.masked_attention(query, query, query, places, places, [], [], formula, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at the kernels of a device")
@pytest.mark.parametrize(("causal", "right"), [(3, True), (2, True), (1, False), (0, False)])
def test_attentions_under_a_formula_do_not_count_on_a_cpu(causal, right):
    _, path = profiled(Way("sharp", 0.1), 100, 3, lambda: attention(causal), None)
    assert path.name == "kernels of attention, sharp, 10%, 100 tokens"
    assert path.right is right
    assert path.told.startswith(f"{causal} attentions of 3 layers by a flash kernel")


KERNELS = {
    "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, 64> >(Flash_fwd_params)": True,
    "void pytorch_flash::flash_fwd_splitkv_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, 64> >(int)": True,
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_128x128x128_4x1x1": True,
    "void pytorch_flash::flash_fwd_splitkv_combine_kernel<pytorch_flash::Flash_fwd_kernel_traits<128> >(int)": False,
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel::Params)": False,
}


@pytest.mark.parametrize(("kernel", "flash"), KERNELS.items())
def test_names_of_kernels_on_a_gpu(kernel, flash):
    found = _path("a way", "cuda", {_short(kernel): 27}, 28)
    assert found.right is flash
    assert _path("a way", "cuda", {_short(kernel): 26}, 28).right is False
    assert found.told.startswith(f"{27 if flash else 0} attentions of 28 layers") and found.told.endswith(" 27x")
