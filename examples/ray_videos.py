"""Ask one question about every video of a folder, in several worker processes with Ray Data.

    python examples/ray_videos.py FOLDER --model CHECKPOINT --question "What happens here?" --workers 2

The arguments of `folder_of_videos.py`, its file of answers and its way to go on after a stop; the two can take turns
on one file. Each worker has a model of its own. Where one dies, Ray starts another and hands it the same video; a
video whose workers die gets an error after the third. Only this process writes the file, and it takes one record for
each video. Needs the extras `video` and `ray`; without arguments it works offline.
"""

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sharp_compile.tools.batch import BatchError, arguments
from sharp_compile.tools.batch.answer import Answerer
from sharp_compile.tools.batch.results import Asked, Record
from sharp_compile.tools.batch.run import run

ATTEMPTS = 3
"""How many workers may die of one video."""


class Attempts:
    """Counts how often each video was begun: an actor, which outlives the workers."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, video: str) -> int:
        """Which attempt this is, from 1 on."""
        self.begun[video] += 1
        return self.begun[video]


class Worker:
    """A model that answers for one row after the other. Rows are JSON: Arrow refuses names that are no valid text."""

    def __init__(self, asked: Asked, folder: Path, attempts: Any) -> None:
        self.answer, self.attempts = Answerer(asked, folder), attempts

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """A record for a video."""
        import ray

        video = json.loads(row["video"])
        if ray.get(self.attempts.begin.remote(video)) > ATTEMPTS:
            record = Record(video, error=f"its worker died {ATTEMPTS} times")
        else:
            record = self.answer(video)
        return {"record": json.dumps(asdict(record))}


def answers(given: argparse.Namespace, asked: Asked, folder: Path, videos: Sequence[str]) -> Iterator[Record]:
    """As they come from the workers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would be sent when Ray starts
    import ray
    import ray.data

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if given.address is not None:
        ray.init(given.address, **quiet)
    else:
        ray.init(
            "local",
            num_cpus=given.workers * given.cpus,
            num_gpus=given.gpus and None,  # those that there are
            object_store_memory=200 * 2**20,  # bytes; rows are small
            include_dashboard=False,
            **quiet,
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    # A block for each video: what Ray does again when a worker dies is a block.
    rows = ray.data.from_items([{"video": json.dumps(video)} for video in videos], override_num_blocks=len(videos))
    records = rows.map(
        Worker,
        fn_constructor_args=(asked, folder.resolve(), attempts),
        compute=ray.data.ActorPoolStrategy(size=given.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=given.cpus,
        num_gpus=given.gpus,
    )
    try:
        for row in records.iter_rows():
            yield Record(**json.loads(row["record"]))
    except ray.exceptions.RayError as error:
        # The worker's own error is at the end of a long account of where it was raised.
        raise BatchError(str(error).strip().rpartition("\n")[2]) from error
    finally:
        ray.shutdown()


if __name__ == "__main__":
    parser = arguments.parser(__doc__)
    parser.add_argument("--workers", type=arguments.positive, default=2, help="processes; %(default)s")
    parser.add_argument("--cpus", type=arguments.positive, help="cores of each; those of this machine, shared out")
    parser.add_argument("--gpus", type=float, default=0, help="of each, may be a part of one; %(default)s, sees none")
    parser.add_argument("--address", help="of a Ray cluster that is running, which has the folder at the same path")
    given = parser.parse_args()
    given.cpus = given.cpus or max(1, (os.cpu_count() or 1) // given.workers)
    if importlib.util.find_spec("ray") is None:
        parser.error("this needs Ray: pip install 'sharp-compile[ray]'")
    sys.exit(run(arguments.request(parser, given), partial(answers, given)))
