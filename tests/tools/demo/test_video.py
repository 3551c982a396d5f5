"""Decoding: the right frames, upright, and a clear error for whatever is no video."""

import io
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sharp_compile.tools.demo import DemoError
from sharp_compile.tools.demo.video import read, sample

ROOT = Path(__file__).parents[3]
CLIP = ROOT / "sharp_compile" / "tools" / "demo" / "clip.mp4"
HEIGHT, WIDTH = 48, 80


def write_video(path, count, rotation=0, **options):
    """Write a video whose frame `i` is grey of level `6 * i`, with a white patch in the top left corner."""
    with av.open(path, "w", **options) as container:
        # Each frame by itself: from one to the next the encoder would let a small change pass.
        stream = container.add_stream("mpeg4", rate=10, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for number in range(count):
            picture = np.full((HEIGHT, WIDTH, 3), 6 * number, dtype=np.uint8)
            picture[:16, :16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(clip):
    """The numbers of a clip's frames, by their grey."""
    return (clip.frames[:, 32:, 32:].mean(axis=(1, 2, 3)) / 6).round().tolist()


def write_sound(path):
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("total", "count"), [(1, 1), (7, 3), (48, 12), (100, 99), (100, 100), (1000, 7)])
def test_samples_are_the_middles_of_equal_parts(total, count):
    picked = np.array(sample(total, count))
    parts = np.arange(count + 1) * total / count
    assert len(picked) == count
    assert np.all(parts[:-1] <= picked + 1) and np.all(picked < parts[1:])
    assert np.all(np.abs(picked + 0.5 - (parts[:-1] + parts[1:]) / 2) <= 0.5)


def test_a_short_video_gives_all_its_frames():
    assert sample(5, 12) == (0, 1, 2, 3, 4)


def test_the_frames_are_those_of_the_sampled_numbers(tmp_path):
    clip = read(write_video(tmp_path / "a.mp4", 40), 6)
    assert clip.frames.shape == (6, HEIGHT, WIDTH, 3) and clip.frames.dtype == np.uint8
    assert clip.indices == sample(40, 6)
    assert (clip.total, clip.fps) == (40, 10.0)
    assert numbers(clip) == list(clip.indices)


@pytest.mark.parametrize(
    ("rotation", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))], ids=["left", "right", "over"]
)
def test_a_rotated_video_is_turned_upright(tmp_path, rotation, corner):
    clip = read(write_video(tmp_path / "a.mp4", 3, rotation), 1)
    height, width = (HEIGHT, WIDTH) if rotation == 180 else (WIDTH, HEIGHT)
    assert clip.frames.shape == (1, height, width, 3)
    assert clip.frames[0][corner].min() > 200, "the white corner is where it was turned to"


def test_the_clip_of_the_package_can_be_read():
    assert CLIP.stat().st_size < 150_000
    clip = read(CLIP, 12)
    assert clip.frames.shape == (12, 360, 480, 3)
    assert clip.total == 48
    assert np.ptp(clip.frames, axis=0).max() > 100, "something moves"


def test_the_script_draws_the_clip_of_the_package(tmp_path):
    path = tmp_path / "clip.mp4"
    subprocess.run([sys.executable, ROOT / "examples" / "make_demo_clip.py", path], check=True)
    drawn, shipped = read(path, 3), read(CLIP, 3)
    assert (drawn.total, drawn.fps) == (shipped.total, shipped.fps)
    # Another version of the encoder may place its losses elsewhere.
    assert np.abs(drawn.frames.astype(float) - shipped.frames).mean() < 3


def missing(folder):
    return folder / "none.mp4"


def folder_itself(folder):
    return folder


def text(folder):
    path = folder / "notes.mp4"
    path.write_text("This is no video.\n" * 100)
    return path


def empty(folder):
    path = folder / "empty.mp4"
    path.touch()
    return path


def index_cut_off(folder):
    whole = write_video(folder / "whole.mp4", 40)
    path = folder / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


def sound_only(folder):
    return write_sound(folder / "sound.mp4")


def no_frames(folder):
    return write_video(folder / "none.avi", 0)


def two_sizes(folder):
    path = folder / "two.mjpeg"
    pictures = [io.BytesIO(), io.BytesIO()]
    for picture, size in zip(pictures, [(48, 32), (32, 48)], strict=True):
        Image.new("RGB", size).save(picture, "JPEG")
    path.write_bytes(b"".join(picture.getvalue() for picture in pictures))
    return path


def huge(folder):
    """A bitmap that says it has 2**62 pixels."""
    path = folder / "huge.bmp"
    header = struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + b"0" * 100)
    return path


def playlist(folder):
    """Names another file; FFmpeg would follow."""
    path = folder / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    return path


@pytest.mark.parametrize("size", [(2, 2), (34, 18), (1, 1), (641, 3)])
def test_a_video_of_an_odd_size_is_read_as_it_is(tmp_path, size):
    path = tmp_path / "odd.mjpeg"
    Image.new("RGB", size, (200, 10, 10)).save(path, "JPEG", subsampling=0)
    clip = read(path, 4)
    assert clip.frames.shape == (1, size[1], size[0], 3) and clip.indices == (0,)
    assert clip.frames[..., 0].min() > 150 and clip.frames[..., 1:].max() < 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_video_is_named(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1)
    path.chmod(0)
    with pytest.raises(DemoError, match=re.escape(str(path))):
        read(path, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "there is no such file"),
        (folder_itself, "there is no such file"),
        (text, "not a video that can be decoded"),
        (empty, "not a video that can be decoded"),
        (index_cut_off, "not a video that can be decoded"),
        (sound_only, "there is no video in this file"),
        (no_frames, "the video has no frames"),
        (two_sizes, "its frames have several sizes (48 x 32, 32 x 48)"),
        (huge, "not a video that can be decoded"),
        (playlist, "not a video that can be decoded"),
    ],
)
def test_what_is_no_video_is_refused_with_its_name(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(DemoError, match=f"^{re.escape(f'{path}: {message}')}"):
        read(path, 4)


def test_a_video_cut_off_behind_its_index_is_refused_or_sampled_from_what_is_left(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 40, options={"movflags": "faststart"})
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    clip = read(path, 4)
    assert 20 < clip.total < 40
    assert numbers(clip) == list(clip.indices)
