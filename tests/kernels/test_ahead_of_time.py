"""Every Triton kernel compiled for NVIDIA GPUs, which needs none: what the launching functions would launch.

They run with tensors of the CPU, a driver that only names a GPU, and Triton's `warmup` in place of launches.
"""

import re
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

try:
    import triton
    from sharp_compile.kernels.attention_column_sums import triton as attention_column_sums
    from sharp_compile.kernels.greedy_cosine_dedup import triton as greedy_cosine_dedup
    from sharp_compile.kernels.multi_gather import triton as multi_gather
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction
except ImportError:
    pytest.skip("needs Triton", allow_module_level=True)

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
if not (BIN / "cuobjdump").exists():
    pytest.skip("needs a Triton that brings NVIDIA's tools", allow_module_level=True)

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")

# What every GPU since Ampere gives to one program; the larger ones give more.
SHARED_MEMORY = 99 * 1024

Built = namedtuple("Built", "registers stack local shared mma wgmma")


class Driver:
    """Names a GPU. Triton caches what it compiled by device, so the device is the architecture."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return self.arch

    def get_current_stream(self, device=None):
        return 0


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """A function that calls another and returns what it would launch, by the name of the kernel."""
    run = JITFunction.run

    def launch(arch, function, *args):
        built = {}

        def warmup(self, *args, grid, warmup, **options):
            kernel = run(self, *args, grid=grid, warmup=True, **options)
            built[self.__name__] = measure(kernel, tmp_path)
            return kernel

        with monkeypatch.context() as patch:
            patch.setattr(driver, "_active", Driver(arch))
            patch.setattr(JITFunction, "run", warmup)
            patch.setattr(attention_column_sums, "wrap_triton", lambda kernel: kernel)
            function(*args)
        return built

    return launch


def measure(kernel, folder):
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [BIN / "cuobjdump", "--dump-resource-usage", cubin]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    ptx = kernel.asm["ptx"]
    return Built(registers, stack, local, kernel.metadata.shared, "mma.sync" in ptx, "wgmma.mma_async" in ptx)


def attention_inputs(dtype, head_dim, rows, form):
    """Qwen2-7B's heads. Launches do not depend on the number of tokens."""
    query, key = torch.zeros(1, 28, rows, head_dim, dtype=dtype), torch.zeros(1, 4, 256, head_dim, dtype=dtype)
    masks = {"none": None, "bool": torch.ones(1, 1, rows, 256) > 0, "additive": torch.zeros(1, 1, rows, 256).to(dtype)}
    return query, key, torch.ones(1, rows), masks[form], 0.1


def vectors_inputs(dtype, features=3584):
    one = torch.ones(1, dtype=torch.int64)
    return torch.zeros(1, 512, features, dtype=dtype), torch.zeros(1, 512, dtype=torch.int64), one, one, 0.8


def values_inputs():
    values = [
        torch.zeros(1, 1, 64, 3584).bfloat16(),
        torch.zeros(1, 64, 4, 128).half().transpose(1, 2),
        torch.zeros(1, 1, 64, 80),
        torch.zeros(1, 1, 64, 64) > 0,
        torch.zeros(1, 3, 64, 1).long(),
        torch.zeros(1, 64, 64, 1),
        torch.zeros(1, 1, 64, 33).bfloat16(),
        torch.zeros(1, 1, 64, 1).bfloat16(),
    ]
    return values, torch.zeros(1, 16, dtype=torch.int64)


def check(built, arch, dtype=None, rows=64):
    for name, kernel in built.items():
        assert kernel.stack == kernel.local == 0, (name, kernel)
        assert kernel.shared <= SHARED_MEMORY, (name, kernel)
        if name not in ("_resolve", "_gather"):
            # float32 is multiplied exactly, which matrix instructions do not; wgmma takes 64 rows at a time.
            exact = dtype == torch.float32
            large = arch == 90 and rows >= 64
            assert (kernel.mma, kernel.wgmma) == (not exact and not large, not exact and large), (name, kernel)


slow = pytest.mark.slow
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    "dtype, head_dim, rows, form",
    [
        (BF16, 128, 64, "none"),
        pytest.param(F16, 128, 64, "bool", marks=slow),
        pytest.param(BF16, 64, 64, "additive", marks=slow),
        pytest.param(BF16, 80, 64, "bool", marks=slow),
        pytest.param(F16, 80, 1, "none", marks=slow),
        pytest.param(BF16, 256, 64, "additive", marks=slow),
        pytest.param(BF16, 512, 64, "none", marks=slow),
        pytest.param(F32, 128, 64, "none", marks=slow),
        pytest.param(F32, 64, 1, "bool", marks=slow),
        pytest.param(F32, 80, 64, "additive", marks=slow),
    ],
)
def test_attention_column_sums(launched, arch, dtype, head_dim, rows, form):
    built = launched(arch, attention_column_sums.attention_column_sums, *attention_inputs(dtype, head_dim, rows, form))
    assert set(built) == {"_logsumexp_of_tiles", "_column_sums"}
    check(built, arch, dtype, attention_column_sums.tiles(7 * rows, head_dim, dtype).rows)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [BF16, pytest.param(F16, marks=slow), pytest.param(F32, marks=slow)])
def test_greedy_cosine_dedup(launched, arch, dtype):
    built = launched(arch, greedy_cosine_dedup.greedy_cosine_dedup, *vectors_inputs(dtype))
    assert set(built) == {"_compare", "_resolve"}
    check(built, arch, dtype)


@pytest.mark.parametrize("arch", [80, 90])
def test_multi_gather(launched, arch):
    built = launched(arch, multi_gather.multi_gather, *values_inputs())
    assert set(built) == {"_gather"}
    check(built, arch)


@slow
@pytest.mark.skipif(triton.__version__ != "3.9.0", reason="another compiler gives other numbers")
def test_the_numbers_in_the_page(launched):
    cases = [
        (attention_column_sums.attention_column_sums, attention_inputs(BF16, 128, 64, "none")),
        (greedy_cosine_dedup.greedy_cosine_dedup, vectors_inputs(BF16)),
        (multi_gather.multi_gather, (values_inputs()[0][:1] * 3, values_inputs()[1])),
    ]
    built = [
        {name: kernel for case in cases for name, kernel in launched(arch, case[0], *case[1]).items()}
        for arch in (80, 90)
    ]
    rows = [
        f"| `{name}` | {a.registers} | {a.shared:,} | {b.registers} | {b.shared:,} |"
        for name, a, b in ((name, built[0][name], built[1][name]) for name in built[0])
    ]
    missing = [row for row in rows if row not in PAGE]
    assert not missing, "\n".join(["missing:", *missing])


def test_inductor_sees_what_attention_column_sums_writes(monkeypatch):
    """Where it can't tell which tensors a kernel writes, it copies all of them first: the keys, too."""
    monkeypatch.setattr(driver, "_active", Driver(90))
    *inputs, scale = attention_inputs(BF16, 128, 64, "bool")
    with FakeTensorMode():
        inputs = [torch.empty(value.shape, dtype=value.dtype, device="cuda") for value in inputs]
        graph = make_fx(torch.func.functionalize(attention_column_sums.attention_column_sums))(*inputs, scale).graph
    launches = [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    assert [node.kwargs["tensors_to_clone"] for node in launches] == [["partial"], ["sums"]]
