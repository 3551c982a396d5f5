"""Ask one question about every video of a folder, in one process with a progress bar.

    python examples/folder_of_videos.py FOLDER --model CHECKPOINT --question "What happens here?"

Each answer is a line of JSON in the file --output. A run that was stopped, in whatever way, goes on where it was; a
video that can't be read gets a line with the error, and is told at the end with exit status 1. Delete its line to ask
again. Without arguments it works offline: a small trained model counts the objects in rendered videos. Needs the
extra `video`; `ray_videos.py` does the same in several processes.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sharp_compile.tools.batch import arguments
from sharp_compile.tools.batch.answer import Answerer
from sharp_compile.tools.batch.results import Asked, Record
from sharp_compile.tools.batch.run import run


def answers(asked: Asked, folder: Path, videos: Sequence[str]) -> Iterator[Record]:
    """One after the other."""
    return map(Answerer(asked, folder), videos)


if __name__ == "__main__":
    parser = arguments.parser(__doc__)
    sys.exit(run(arguments.request(parser, parser.parse_args()), answers))
