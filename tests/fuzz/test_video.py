"""Bytes of a video that were damaged: frames, or an error that names the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from sharp_compile.tools.demo import DemoError, video

CLIP = (Path(video.__file__).with_name("clip.mp4")).read_bytes()
# Where a change matters most: the boxes of the file are in front, their index after.
INDEX = CLIP.rindex(b"moov")


def read(data):
    """Reads bytes as a file."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        try:
            clip = video.read(Path(file.name), 2)
        except DemoError as error:
            assert str(error).startswith(f"{file.name}: ") and "\n" not in str(error)
            return
    assert clip.frames.ndim == 4 and clip.frames.dtype == np.uint8 and clip.frames.shape[-1] == 3
    assert len(clip.frames) == len(clip.indices) in (1, 2)
    assert 0 <= clip.indices[0] <= clip.indices[-1] < clip.total and 0 < clip.fps < float("inf")


CHANGES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, len(CLIP) - 1), st.integers(INDEX - 64, len(CLIP) - 1), st.integers(0, 256)),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])),
    ),
    max_size=12,
)


@st.composite
def damaged(draw):
    """The clip with some bytes changed, or with an end missing."""
    data = bytearray(CLIP)
    for place, value in draw(CHANGES):
        data[place : place + len(value)] = value
    start, end = draw(st.sampled_from([0] * 9 + [1, 100])), draw(st.just(len(CLIP)) | st.integers(0, len(CLIP)))
    return bytes(data[start:end])


CASES = damaged()


@given(CASES)
@example(b"")
@example(CLIP[:1])
@example(CLIP[:-1])
@example(CLIP + CLIP)
def test_any_damage(data):
    read(data)
