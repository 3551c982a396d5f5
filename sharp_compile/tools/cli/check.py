"""``sharp-compile check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import check_folders, check_installed, fail
from .options import Json


def check(
    device: Annotated[
        str | None, typer.Option(help="cuda or cpu.  [default: cuda where there is one, else cpu]")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.5, help="The time that there is: what tells most comes first.")] = 6.0,
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the times into this PNG file.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Leave the profile in this file, .json or .json.gz, for Perfetto.")
    ] = None,
) -> None:
    """Check that all is right on this machine, and measure what it brings there.

    Every Triton kernel, and attention without a mask, against definitions; tiny models of four families, pruned,
    against the stock eager model that is pruned by hand; then the prefill of a decoder with random weights: on a GPU
    that of LLaVA-OneVision-7B, on a CPU a small one of its proportions; which kernels attend there, whether a call
    waits for the device, and how its peak of memory grows. Works offline. The exit code is 1 if anything is wrong.
    """
    if device not in (None, "cuda", "cpu"):
        fail(f"--device {device}: must be cuda or cpu")
    check_folders(json, plot, trace)
    if plot:
        check_installed("matplotlib", need="--plot needs", extra="bench")

    import torch

    from sharp_compile.tools.check import CheckError
    from sharp_compile.tools.check.run import Request, run

    try:
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        right = run(Request(chosen, minutes, json, plot, trace))
    except (CheckError, OSError) as error:
        fail(error)
    if not right:
        raise typer.Exit(1)
