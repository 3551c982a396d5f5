"""What the machine has, and what of ours can run on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sharp_compile.short_repr import brief
from sharp_compile.tools import results_io

from .rows import Fact

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def facts(device: str) -> Iterator[Fact]:
    """Yield versions, the device, and which kernels can run there."""
    for name, version in results_io.versions().items():
        yield Fact(name, version)
    yield Fact("triton", metadata.version("triton") if find_spec("triton") else "not installed")
    yield Fact("machine", results_io.machine())
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield Fact("device memory", f"{properties.total_memory / 1e9:.0f} GB")
        yield Fact("compute capability", f"{properties.major}.{properties.minor}")
        yield Fact("multiprocessors", str(properties.multi_processor_count))
        yield Fact("CUDA of torch", str(torch.version.cuda))
        yield Fact("bfloat16", "native" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated")
    yield Fact("Triton kernels", _triton_kernels(device))
    for masked in (False, True):
        yield Fact(f"attention {'with' if masked else 'without'} a mask", ", ".join(_attention(device, masked)))


def _triton_kernels(device: str) -> str:
    if find_spec("triton") is None:
        return "not here: plain PyTorch instead"
    if device == "cpu":
        return "not on a CPU: plain PyTorch instead, which Inductor compiles to C++"
    return "as configured for any GPU since Ampere" if os.environ.get("TRITON_INTERPRET") != "1" else "interpreted"


def _attention(device: str, masked: bool) -> Iterator[str]:
    """Yield the fused kernels of ``scaled_dot_product_attention`` that take bfloat16, with or without a mask."""
    query = torch.zeros(1, 2, 128, 64, dtype=torch.bfloat16, device=device)
    mask = torch.ones(1, 1, 128, 128, dtype=torch.bool, device=device) if masked else None
    for name, backend in _BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                scaled_dot_product_attention(query, query, query, attn_mask=mask, is_causal=not masked)
        except RuntimeError as error:
            if not re.match("No (available kernel|viable backend)", str(error)):
                yield f"{name} fails ({brief(error)})"
            continue
        yield name
    yield "math"
