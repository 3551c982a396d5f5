"""The command line that all ways to run share."""

from __future__ import annotations

import argparse
from pathlib import Path

from sharp_compile.options import DEFAULTS
from sharp_compile.tools.batch.answer import TRAINED
from sharp_compile.tools.batch.results import Asked
from sharp_compile.tools.batch.run import CLIPS, Request
from sharp_compile.tools.evaluation.scenes import FRAMES


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with these arguments, to which others may be added."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("folder", type=Path, nargs="?", help=f"with the videos; {CLIPS} rendered ones if there is none")
    add("--model", type=Path, help=f"folder of a checkpoint; {TRAINED} that comes with the package if there is none")
    add("--question", help="what to ask about each video; how many objects it shows, or what happens for a checkpoint")
    add("--output", type=Path, default=Path("answers.jsonl"), help="file of the answers: a line of JSON for each video")
    add("--expected", type=Path, help="JSON file with right answers by the paths of videos, to count those that are")
    add("--frames", type=positive, help="taken from each video, at even distances; 8")
    add("--retention", type=float, default=DEFAULTS["retention"], help="share of the visual tokens kept; %(default)s")
    add("--layer", type=int, default=DEFAULTS["layer"], help="after which the others are dropped; %(default)s")
    add("--selector", default=DEFAULTS["selector"], help="what decides; %(default)s")
    add("--inner", help="Dynamo backend that compiles the pruned graph; inductor for a checkpoint, else eager")
    add("--max-new-tokens", type=positive, default=64, help="the most tokens that an answer has; %(default)s")
    return made


def request(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Request:
    """Return what was asked for; ends the program where the arguments contradict each other."""
    trained = given.model is None
    if trained and given.frames is not None:
        parser.error(f"--frames {given.frames}: only with --model; {TRAINED} reads {FRAMES}")
    if given.folder is None and not trained:
        parser.error(f"--model {given.model}: say in which folder the videos are")
    if given.folder is None and given.expected is not None:
        parser.error(f"--expected {given.expected}: of rendered videos the right answers are known")
    asked = Asked(
        model=TRAINED if trained else str(given.model.resolve()),
        question=given.question or ("how-many objects in-all ?" if trained else "What happens here?"),
        frames=FRAMES if trained else given.frames or 8,
        retention=given.retention,
        layer=given.layer,
        selector=given.selector,
        inner=given.inner or ("eager" if trained else DEFAULTS["inner"]),
        max_new_tokens=given.max_new_tokens,
    )
    return Request(asked, given.folder, given.output, given.expected)


def positive(text: str) -> int:
    """Return a number from 1 on, for ``type`` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: has to be 1 or more")
    return number
