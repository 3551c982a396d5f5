"""Writes docs/architectures.md from the outcomes of `tests/test_every_architecture.py`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import transformers

Outcome = tuple[str, str, str, str, str]
"""Architecture, call, rows, how it ended ("pruned", or "" for declined), and the backend's reason."""

CALLS = ("forward", "generate", "static cache")
HEADER = """# Architectures

What became of each architecture of transformers in the tests: tiny models with random weights, `retention=0.25`,
`layer=1`, the selectors `uniform`, `fastv` and `sharp` in turn, in float32 on a CPU, with {transformers}. "one row" and
"padded" (two rows, one of them padded on the left) mean that the pruned model gave the logits, tokens and caches of the
eager model that is pruned by hand with hooks, to 1e-4, or that the declined one gave those of the unpruned model.
`forward` is called through `torch.compile(model, backend="sharp")`, `generate` after `sharp_compile.compile(model)`; so
is `forward` of Granite 4 Vision, Molmo2, Ovis2 and Phi-4-multimodal, which inject their features in code that Dynamo
runs eagerly.

Left out are models of images or videos that have no visual token in the sequence of a causal decoder. Blip, Idefics,
Mllama, PP-FormulaNet, UDOP, `VisionEncoderDecoderModel` read features by cross-attention, Pix2Struct as embeddings that
are no prompt's: a warning says that there is nothing to prune. Florence-2 and T5Gemma 2 have them in an encoder: in
`generate` that runs by itself, and a warning says so; `forward` of Florence-2 is pruned, and that of T5Gemma 2 is an
error, since its decoder would count copies. The caches of Unlimited-OCR keep tokens in a way of their own, which is
declined. PI0 is declined in `forward`, and its `sample_actions` never reaches the compiled call. DiffusionGemma was not
run.

With a dynamic cache or none, no layer of what is pruned keeps a mask of all pairs of tokens, but in five architectures
(`report.dense_masks`): Kosmos-2 adds a mask of its own to the scores, GOT-OCR 2 writes out its attention and HY-V4-VL
its own with sinks, and a sparse indexer marks each query's best keys in that of Mistral Large 4 and in half of the
layers of dots3 note. With a static cache `generate` makes the masks of a padded batch in front of the call, for every
model.

This page is written by `pytest -m "slow or not slow" tests/test_every_architecture.py --table docs/architectures.md`;
without `--table` the same tests compare what comes out with it.

| architecture | forward | generate | static cache | how |
| --- | --- | --- | --- | --- |
"""


def write_table(path: Path, outcomes: Iterable[Outcome], passed: set[tuple[str, str, str]]) -> None:
    """Writes the page.

    Args:
        path: the page.
        outcomes: of each case, several for one architecture, call and rows (one a selector).
        passed: the cases of architecture, call and rows all of whose tests passed.
    """
    cells: dict[tuple[str, str], set[str]] = defaultdict(set)
    how: dict[str, dict[str, None]] = {}
    for name, call, rows, ended, reason in outcomes:
        told = _told(rows, ended)
        cells[name, call].add(told if (name, call, rows) in passed else f"**{told}: wrong**")
        how.setdefault(name, {})[_sentence(reason)] = None
    lines = []
    for name in sorted(how):
        ended = [", ".join(sorted(cells[name, call])) or "-" for call in CALLS]
        lines.append(f"| {' | '.join([name, *ended, _shortest(how[name])])} |")
    header = HEADER.format(transformers=_version())
    path.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


def check_on_page(path: Path, outcome: Outcome) -> None:
    """Asserts that the page says of a case how it ended, and why; with another version of transformers it may not."""
    name, call, rows, ended, reason = outcome
    page = path.read_text(encoding="utf-8")
    if f" {_version()}." not in page:
        return
    row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    _, _, *cells, how, _ = re.split(r" ?(?<!\\)\| ?", row)
    assert _told(rows, ended) in cells[CALLS.index(call)].split(", "), f"{path.name} says otherwise of {outcome}: {row}"
    assert _sentence(reason) in how, f"{path.name} does not have the reason of {outcome}: {row}"


def _version() -> str:
    return f"transformers {'.'.join(transformers.__version__.split('.')[:2])}"


def _told(rows: str, ended: str) -> str:
    return rows if ended else f"declined ({rows})"


def _sentence(reason: str) -> str:
    """A reason without the place of the code, which differs between machines."""
    for part in ("sharp_compile runs a graph unpruned: ", "\n"):
        reason = reason.replace(part, " " if part == "\n" else "")
    before, opening, behind = reason.partition(' (File "')
    return (before + behind.partition(")")[2] if opening else reason).replace("|", "\\|")


def _shortest(reasons: Iterable[str]) -> str:
    return "; ".join(sorted(set(reasons), key=len))
