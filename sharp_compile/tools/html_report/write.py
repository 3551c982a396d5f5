"""From the facts of an explanation to the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch

from sharp_compile.report import GraphReport
from sharp_compile.short_repr import short_repr
from sharp_compile.tools import results_io

from . import pictures
from .cells import Grid, grid_of
from .tiles import Tile, Tokens, arrange

if TYPE_CHECKING:
    from sharp_compile.explanation import CachedLayer, Explanation


@dataclass(frozen=True)
class Bar:
    """Layers in a row that see equally many tokens: the first and the last, and what share of all that is."""

    first: int
    last: int
    tokens: int
    share: float


def write_page(
    explanation: Explanation,
    path: Path,
    frames: Sequence[np.ndarray] | None = None,
    title: str | None = None,
    answers: tuple[str, str] | None = None,
) -> None:
    """Write the page of an explanation.

    Args:
        explanation: what happened in one call.
        path: the file; there is the old one or the new one at any time.
        frames: ``[T, H, W, 3]`` uint8 for each row of the batch; None for those among the model's inputs, if there are.
        title: the heading; None for one that says what the page is.
        answers: what the full and the pruned model answered, where they were asked.

    Raises:
        ValueError: for frames that are not such arrays, or not one for each row.
        OSError: where the file can't be written.
    """
    graph = next((each for each in explanation.graphs if each.pruned and each.scores is not None), None)
    rows = [] if graph is None else _rows(graph, explanation.inputs, frames)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = resources.files("sharp_compile.tools.html_report").joinpath("page.html.jinja").read_text()
    page = environment.from_string(template).render(
        title=title or "What was kept, and why",
        outcomes=explanation.outcomes(),
        graph=graph,
        facts=None if graph is None else _facts(graph, explanation.layers),
        bars=[] if graph is None else _bars(graph),
        rows=rows,
        data=[[_data(tile, row["tokens"]) for tile in row["tiles"]] for row in rows],
        scale=pictures.SCALE,
        veil=pictures.VEIL,
        answers=answers,
        options=[(name, short_repr(value)) for name, value in explanation.options.items()],
        missing=[] if graph is None else _missing(graph, explanation, rows),
        graphs=f"{len(explanation.graphs)}, {sum(each.pruned for each in explanation.graphs)} of them pruned",
        machine=results_io.machine(),
        versions=results_io.versions(),
    )
    results_io.write(path, page.encode())


def _facts(graph: GraphReport, layers: Sequence[CachedLayer]) -> dict[str, Any]:
    """Return the lengths of the graph's last run, and what was there before and after in operations and bytes."""
    assert graph.kept is not None
    batch, length, visual = _lengths(graph)
    kept = graph.kept.shape[1]
    before, after = graph.flops or (None, None)
    # A row of the cache is as wide in the unpruned model, and it has one for each token.
    full = sum(round(layer.bytes / layer.length * length) for layer in layers if layer.length)
    return {
        "batch": batch,
        "length": length,
        "kept": kept,
        "visual": visual,
        "visual_kept": kept - (length - visual),
        "flops": None if before is None or after is None else (before, after),
        "cache": (full, sum(layer.bytes for layer in layers)) if full else None,
    }


def _missing(graph: GraphReport, explanation: Explanation, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the page can't show of a pruned graph, with the reason."""
    assert graph.frame is not None
    missing = []
    if grid_of(explanation.inputs, len(rows[0]["tokens"].scores)) is None:
        missing.append(
            "Places of tokens: the shapes of the inputs do not tell which part of which picture each token stands for, "
            "as with several videos in one prompt; cells are in the order of the tokens."
        )
    elif not any(image["photo"] for row in rows for image in row["images"]):
        missing.append("Pictures: the inputs hold patches, not frames; give them as frames=.")
    if int(graph.frame.max()) <= 0:
        missing.append("Frames: the graph shows no more than one, so that no token is compared with an earlier frame.")
    if graph.segment is None and explanation.options.get("segment") is not None:
        missing.append("Segments: the rule that scored knows none.")
    if not graph.hoisted and explanation.options.get("hoist"):
        missing.append(
            "An early cut: it could not be proven that the layer of the cut needs only keys and values of dropped "
            "tokens; it computes all tokens."
        )
    return missing


def _lengths(graph: GraphReport) -> tuple[int, int, int]:
    """B, S and V of the last run."""
    assert graph.frame is not None
    batch, length = graph.frame.shape
    return batch, length, int((graph.frame >= 0).sum()) // batch


def _bars(graph: GraphReport) -> list[Bar]:
    """Return how many tokens each layer works on."""
    assert graph.num_layers is not None
    _, length, visual = _lengths(graph)
    tokens = []
    for layer in range(graph.num_layers):
        done = [cut for cut in graph.cuts or () if cut.layer < layer]
        tokens.append(length - visual + done[-1].kept(visual) if done else length)
    bars = []
    for count, group in groupby(range(len(tokens)), tokens.__getitem__):
        own = list(group)
        bars.append(Bar(own[0], own[-1], count, count / length))
    return bars


def _rows(graph: GraphReport, inputs: Mapping[str, Any], frames: Sequence[np.ndarray] | None) -> list[dict[str, Any]]:
    """Return the pictures and counts of each row of the batch."""
    assert graph.scores is not None
    batch = len(graph.scores)
    if frames is not None and len(frames) != batch:
        raise ValueError(f"frames are {len(frames)} arrays, the batch has {batch} rows: give one for each row")
    rows = []
    for row in range(batch):
        tokens = _tokens(graph, row)
        grid = grid_of(inputs, len(tokens.scores))
        own = pictures.frames_in(inputs, row, batch) if frames is None else _checked(frames[row], row)
        tiles = arrange(tokens, grid)
        order = tokens.order
        rows.append(
            {
                "tokens": tokens,
                "kept": int(tokens.kept.sum()),
                "visual": len(tokens.scores),
                "tiles": tiles,
                "images": [
                    {
                        "heat": pictures.heat(tile.tokens, order),
                        "veil": pictures.veil(tile.tokens, tokens.kept),
                        "photo": _photo(tile, own, grid),
                        "rows": tile.tokens.shape[0],
                        "columns": tile.tokens.shape[1],
                        "kept": int(tokens.kept[tile.tokens[tile.tokens >= 0]].sum()),
                        "all": int((tile.tokens >= 0).sum()),
                        "name": tile.name,
                    }
                    for tile in tiles
                ],
                "segments": _segments(tokens, tiles),
            }
        )
    return rows


def _tokens(graph: GraphReport, row: int) -> Tokens:
    """Return the visual tokens of one row of the batch."""
    assert graph.scores is not None and graph.kept is not None and graph.frame is not None
    places = (graph.frame[row] >= 0).nonzero()[:, 0]
    return Tokens(
        graph.scores[row][places].cpu().numpy(),
        torch.isin(places, graph.kept[row]).cpu().numpy(),
        graph.frame[row][places].cpu().numpy(),
        None if graph.segment is None else graph.segment[row][places].cpu().numpy(),
    )


def _segments(tokens: Tokens, tiles: Sequence[Tile]) -> list[tuple[int, int, int]]:
    """Return the number, the kept and all tokens of each segment; none where there is one, or they are tiles."""
    if tokens.segment is None or len(np.unique(tokens.segment)) == 1:
        return []
    tile = np.empty_like(tokens.segment)
    for number, each in enumerate(tiles):
        tile[each.tokens[each.tokens >= 0]] = number
    if np.array_equal(np.diff(tile) != 0, np.diff(tokens.segment) != 0):
        return []
    return [
        (int(number), int(tokens.kept[tokens.segment == number].sum()), int((tokens.segment == number).sum()))
        for number in np.unique(tokens.segment)
    ]


def _photo(tile: Tile, frames: np.ndarray | None, grid: Grid | None) -> str | None:
    """Return the picture that a tile lies on."""
    if frames is None or grid is None or tile.picture is None:
        return None
    number = tile.picture * grid.frames_each(len(frames))
    return pictures.photo(frames[number]) if number < len(frames) else None


def _checked(frames: np.ndarray, row: int) -> np.ndarray:
    array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"frames[{row}] must be uint8 [T, H, W, 3], it is {array.dtype} {list(array.shape)}")
    return array


def _data(tile: Tile, tokens: Tokens) -> dict[str, Any]:
    """Return what the page's script tells of the cell under the pointer."""
    numbers = tile.tokens.flatten()
    order = tokens.order
    return {
        "columns": tile.tokens.shape[1],
        "rows": tile.tokens.shape[0],
        "score": [None if number < 0 else f"{tokens.scores[number]:.3g}" for number in numbers],
        "rank": [None if number < 0 else int(order[number]) + 1 for number in numbers],
        "kept": [bool(number >= 0 and tokens.kept[number]) for number in numbers],
    }
