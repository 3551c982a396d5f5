"""The images of a page, read back."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from sharp_compile.tools.html_report import pictures


def read(address):
    kind, _, content = address.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{image.format.lower()}"
    return np.asarray(image)


def test_heat_goes_from_the_lowest_to_the_highest_colour():
    cells = read(pictures.heat(np.array([[0, 1], [2, -1]]), np.array([2, 0, 1])))
    low, high = (
        [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        for colour in pictures.SCALE[:: len(pictures.SCALE) - 1]
    )
    assert cells[0, 0].tolist() == [*low, 255] and cells[0, 1].tolist() == [*high, 255]
    assert cells[1, 1].tolist() == [0, 0, 0, 0], "no token, no colour"


def test_the_veil_lies_on_what_was_dropped():
    cells = read(pictures.veil(np.array([[0, 1], [2, -1]]), np.array([True, False, True])))
    assert (cells[..., 3] > 0).tolist() == [[False, True], [False, True]]


def test_photos_are_made_small():
    assert read(pictures.photo(np.zeros((400, 640, 3), np.uint8))).shape == (200, 320, 3)
    assert read(pictures.photo(np.zeros((32, 32, 3), np.uint8))).shape == (32, 32, 3)


def test_frames_among_the_inputs():
    pixels = torch.linspace(-1, 1, 2 * 3 * 3 * 4 * 5).reshape(2, 3, 3, 4, 5)
    frames = pictures.frames_in({"pixel_values_videos": pixels}, 1, 2)
    assert frames.shape == (3, 4, 5, 3) and frames.dtype == np.uint8
    assert (frames.min(), frames.max()) == (0, 255)
    flat = pictures.frames_in({"pixel_values": pixels.flatten(0, 1)}, 1, 2)
    np.testing.assert_array_equal(flat, frames)
    assert pictures.frames_in({"pixel_values_videos": torch.zeros(40, 12)}, 0, 1) is None, "patches are no frames"
    assert pictures.frames_in({}, 0, 1) is None


def test_bad_pixels_make_no_bad_pictures():
    pixels = torch.full((1, 1, 3, 2, 2), float("nan"))
    assert pictures.frames_in({"pixel_values_videos": pixels}, 0, 1).tolist() == [[[[0] * 3] * 2] * 2]
