"""Decode a video file and take frames from it at even distances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from sharp_compile.short_repr import brief
from sharp_compile.tools.demo import DemoError


@dataclass(frozen=True)
class Clip:
    """The frames taken from a video.

    ``frames`` is ``[T, H, W, 3]``, uint8, RGB, upright. ``indices`` are their T numbers among the ``total`` frames
    of the video, which plays at ``fps`` frames a second.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    total: int
    fps: float


def sample(total: int, count: int) -> tuple[int, ...]:
    """Return the numbers of ``count`` of ``total`` frames: the middle ones of ``count`` equally long parts.

    A video with fewer frames than asked for gives all of them.
    """
    count = min(total, count)
    return tuple((2 * part + 1) * total // (2 * count) for part in range(count))


def read(path: Path, count: int) -> Clip:
    """Decode ``count`` frames of the first video stream of a file.

    The file is gone through twice, so that its own statement of how many frames there are, which may be
    missing or wrong, needn't be trusted, and no more than ``count`` frames are ever held.

    Args:
        path: A video file in any format that FFmpeg can decode.
        count: How many frames to take, 1 or more.

    Raises:
        DemoError: There is no such file, it is not a video, it has no frames, or it is damaged.
    """
    if not path.is_file():
        raise DemoError(f"{path}: there is no such file")
    try:
        total, fps = _measure(path)
        if total == 0:
            raise DemoError(f"{path}: the video has no frames")
        indices = sample(total, count)
        frames = _decode(path, set(indices))
    except av.error.FFmpegError as error:
        raise DemoError(f"{path}: not a video that can be decoded ({error.strerror})") from error
    except (MemoryError, ValueError) as error:  # sizes, formats and rotations that a damaged file may claim
        raise DemoError(f"{path}: not a video that can be decoded ({brief(error)})") from error
    if len(frames) < len(indices):
        raise DemoError(f"{path}: only {len(frames)} of the {len(indices)} frames asked for can be decoded")
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) > 1:
        told = ", ".join(f"{width} x {height}" for height, width in sizes)
        raise DemoError(f"{path}: its frames have several sizes ({told}), they must have one")
    return Clip(np.stack(frames), indices, total, fps)


def _measure(path: Path) -> tuple[int, float]:
    """Return the number of frames of a video and how many of them play in a second."""
    with av.open(path) as container:
        if not container.streams.video:
            raise DemoError(f"{path}: there is no video in this file")
        stream = container.streams.video[0]
        # The last packet is an empty one, a request to the decoder to hand out what it still holds.
        total = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
        rate = stream.average_rate or stream.guessed_rate
    # A stream of pictures without a rate is shown like a slide show; so is one that would run backwards.
    return total, float(rate) if rate and rate > 0 else 1.0


def _decode(path: Path, wanted: set[int]) -> list[np.ndarray]:
    """Return the frames whose numbers are wanted, or those of them that there are."""
    frames: list[np.ndarray] = []
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                # Telephones store what their sensor saw and note in the file by how much to turn it.
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
            if len(frames) == len(wanted):
                break
    return frames
