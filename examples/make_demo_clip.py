"""Draw the clip that `sharp-compile demo` ships with, `sharp_compile/tools/demo/clip.mp4`.

    python examples/make_demo_clip.py clip.mp4

Four seconds of a ball, a box and a star that move over a still, textured landscape: most of the picture
repeats from frame to frame, as in real videos, and a few things in it don't. Needs `sharp-compile[video]`.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, FPS, SECONDS = 480, 360, 12, 4
SHARPER = 2
"""Everything is drawn this many times larger and scaled down, which smooths the edges."""


def landscape() -> Image.Image:
    """Return the background: a sky and three ranges of hills, each with a texture of its own."""
    random = np.random.default_rng(7)
    height, width = HEIGHT * SHARPER, WIDTH * SHARPER
    y, x = np.mgrid[0:height, 0:width] / height
    picture = np.stack([70 + 110 * y, 120 + 80 * y, 190 + 20 * y], axis=-1)
    far, middle, near = (86, 120, 120), (62, 104, 78), (92, 78, 52)
    hills = [(0.50, far, 5.0, 0.4), (0.63, middle, 3.4, 2.1), (0.80, near, 2.2, 4.0)]
    for top, colour, waves, phase in hills:
        ridge = top + 0.06 * np.sin(waves * x + phase) + 0.025 * np.sin(3.1 * waves * x + 2 * phase)
        coarse = random.normal(size=(height // 12 + 1, width // 12 + 1)).repeat(12, 0).repeat(12, 1)
        texture = 9 * coarse[:height, :width] + 6 * np.sin(90 * (y - ridge) + 12 * np.sin(4 * x))
        picture = np.where((y > ridge)[..., None], np.array(colour) + texture[..., None], picture)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(2))


def star(centre: tuple[float, float], radius: float, angle: float) -> list[tuple[float, float]]:
    """Return the ten corners of a five-pointed star."""
    corners = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else 0.45 * radius
        turn = angle + corner * math.pi / 5
        corners.append((centre[0] + reach * math.cos(turn), centre[1] + reach * math.sin(turn)))
    return corners


def frames() -> Iterator[Image.Image]:
    """Yield the clip's frames, WIDTH x HEIGHT pixels each."""
    background = landscape()
    width, height = background.size
    count = FPS * SECONDS
    for number in range(count):
        t = number / (count - 1)
        image = background.copy()
        draw = ImageDraw.Draw(image)
        # The box slides over the ground from right to left.
        left, top, side = (0.95 - 0.80 * t) * width, 0.74 * height, 0.16 * height
        draw.rectangle((left, top, left + side, top + side), (52, 96, 210), (18, 36, 96), 6)
        # The star drifts across the sky and turns.
        centre = ((0.10 + 0.55 * t) * width, (0.18 + 0.06 * math.sin(6 * t)) * height)
        draw.polygon(star(centre, 0.11 * height, 4 * t), (248, 208, 60), (140, 104, 10), 5)
        # The ball bounces in front of everything, from left to right, over its own shadow.
        x, bounce, radius = (0.08 + 0.84 * t) * width, abs(math.sin(3 * math.pi * t)), 0.10 * height
        y = (0.82 - 0.45 * bounce) * height
        draw.ellipse((x - radius, 0.91 * height, x + radius, 0.94 * height), (46, 40, 28))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), (222, 58, 48), (110, 16, 12), 6)
        shine = (x - 0.5 * radius, y - 0.6 * radius, x, y - 0.2 * radius)
        draw.ellipse(shine, (250, 170, 160))
        yield image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def write(path: Path) -> None:
    """Encode the clip as H.264, which every build of PyAV can decode."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "26", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in frames():
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the clip that the demo ships with.")
    parser.add_argument("path", type=Path, help="the .mp4 file to write")
    write(parser.parse_args().path)
