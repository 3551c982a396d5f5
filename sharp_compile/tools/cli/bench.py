"""``sharp-compile bench``."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import check_folders, check_installed, fail
from .options import Json, Layers, Retentions, refuse_given

if TYPE_CHECKING:
    from sharp_compile.tools.bench.run import Request

_TIMED = ("repeats", "decode", "eager", "plot_time", "plot_speedup")
_DTYPES = ("float32", "bfloat16", "float16")

Model = Annotated[str, typer.Option(help="A decoder by name; a wrong one lists them.")]
Width = Annotated[
    int | None,
    typer.Option(help="Scale the model to this hidden size.  [default: 512; with --meta: the model's own]"),
]
FullSize = Annotated[bool, typer.Option("--full-size", help="Do not scale the model.")]
Depth = Annotated[int | None, typer.Option(min=2, help="Layers.  [default: the model's own]")]
Tokens = Annotated[
    list[int] | None,
    typer.Option(
        min=1, help="Visual tokens, may be repeated.  [default: 4096, 4116 with --vision; with --meta: 6273, 6272]"
    ),
]
Stages = Annotated[
    list[str] | None, typer.Option(help="Several cuts instead, as LAYER:SHARE,LAYER:SHARE; may be repeated.")
]
Selectors = Annotated[list[str], typer.Option(help="Rules, may be repeated.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16.  [default: float32; with --meta: bfloat16]")
]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each way.")]
Decode = Annotated[int, typer.Option(min=0, help="Decoding steps that are timed; 0 for none.")]
Eager = Annotated[bool, typer.Option(help="Also time eager mode and FastV patched by hand.")]
Vision = Annotated[
    bool, typer.Option("--vision", help="Put a vision tower in front: SigLIP, 196 tokens a frame, scaled alike.")
]
Mask = Annotated[bool, typer.Option(help="Give an attention mask, as processors do.")]
Meta = Annotated[bool, typer.Option("--meta", help="Count instead of running: no time, any size.")]
Peak = Annotated[
    bool, typer.Option("--peak", help="Measure the memory of pruned prefills alone: prompts may be very long.")
]
PlotTime = Annotated[Path | None, typer.Option(help="Draw time against tokens into this PNG file.")]
PlotSpeedup = Annotated[Path | None, typer.Option(help="Draw speed-up against retention into this PNG file.")]


def bench(
    context: typer.Context,
    model: Model = "qwen2-7b",
    width: Width = None,
    full_size: FullSize = False,
    layers: Depth = None,
    tokens: Tokens = None,
    retention: Retentions = [0.10],  # noqa: B006 - typer copies it, and others below
    layer: Layers = [1],  # noqa: B006
    stages: Stages = None,
    selector: Selectors = ["sharp"],  # noqa: B006
    dtype: Dtype = None,
    repeats: Repeats = 5,
    decode: Decode = 8,
    eager: Eager = True,
    vision: Vision = False,
    mask: Mask = True,
    meta: Meta = False,
    peak: Peak = False,
    plot_time: PlotTime = None,
    plot_speedup: PlotSpeedup = None,
    json: Json = None,
) -> None:
    """Time the prefill of a decoder with random weights: eager, Inductor, FastV by hand, and sharp.

    Each row also tells its FLOPs and how near it comes to the speed-up that they allow. By default the decoder has the
    layers and proportions of Qwen2-7B at a width that runs on a laptop. With --meta nothing runs: FLOPs, bytes moved,
    cache and peak memory of models of any size. With --peak pruned prefills run, for their peak memory.
    """
    if meta:
        refuse_given(context, _TIMED, "for what is run, without --meta")
    if peak:
        refuse_given(context, _TIMED, "for what is timed, without --peak")
        if meta:
            fail("--meta and --peak: the one counts, the other runs; give one of them")
    if full_size and width is not None:
        fail(f"--width {width}: give it or --full-size, not both")
    dtype = dtype or ("bfloat16" if meta else "float32")
    if dtype not in _DTYPES:
        fail(f"--dtype {dtype}: there are {', '.join(_DTYPES)}")
    check_folders(plot_time, plot_speedup, json)
    if plot_time or plot_speedup:
        check_installed("matplotlib", need="--plot-time and --plot-speedup need", extra="bench")

    from sharp_compile.tools.bench.decoders import SHAPES
    from sharp_compile.tools.bench.run import Request

    if model not in SHAPES:
        fail(f"--model {model}: there are {', '.join(SHAPES)}")
    cuts: list[dict[str, Any]] = [{"layer": each, "retention": share} for each, share in product(layer, retention)]
    if stages:
        cuts = [{"stages": _stages(text)} for text in stages]
    scaled = width if width is not None or meta or full_size else 512
    # Whole frames of 196 tokens; without a tower, LLaVA-OneVision's token after them is one of the video's.
    usual = (6272 if vision else 6273) if meta else (4116 if vision else 4096)
    request = Request(
        model, scaled, layers, tokens or [usual], cuts, selector, dtype, repeats, decode, eager, vision, mask
    )
    _bench(request, "meta" if meta else "peak" if peak else "time", plot_time, plot_speedup, json)


def _bench(request: Request, what: str, plot_time: Path | None, plot_speedup: Path | None, json: Path | None) -> None:
    """Count or run what is asked for, and write what it gave."""
    from sharp_compile import CannotPrune
    from sharp_compile.options import Config
    from sharp_compile.tools import results_io
    from sharp_compile.tools.bench import BenchError
    from sharp_compile.tools.bench.run import count, fits, run

    try:
        for cut, selector in product(request.cuts, request.selectors):
            for parsed in Config.parse({**cut, "selector": selector}).cuts:
                if parsed.layer + 1 >= request.depth:
                    fail(f"--layer {parsed.layer}: the model has {request.depth} layers, and one must follow")
        if what == "peak":
            from sharp_compile.tools.bench.peaks import measure_peaks

            peaks = measure_peaks(request)
            if json is not None:
                results_io.write_json(json, peaks, fits=fits(peaks))
            return
        if what == "meta":
            counted = count(request)
            if json is not None:
                results_io.write_json(json, counted)
            return
        rows = run(request)
        if json is not None:
            results_io.write_json(json, rows, fits=fits(rows))
        if plot_time is not None or plot_speedup is not None:
            from sharp_compile.tools.bench import plot

            if plot_time is not None:
                plot.plot_time(plot_time, rows)
            if plot_speedup is not None:
                plot.plot_speedup(plot_speedup, rows)
    except (BenchError, CannotPrune, ValueError, OSError) as error:
        fail(error)


def _stages(text: str) -> list[tuple[int, float]]:
    try:
        return [(int(layer), float(share)) for layer, share in (each.split(":") for each in text.split(","))]
    except ValueError:
        fail(f"--stages {text}: must be LAYER:SHARE,LAYER:SHARE, such as 1:0.5,9:0.1")
