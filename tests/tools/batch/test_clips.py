"""Rendered videos in files."""

import numpy as np

from sharp_compile.tools.batch.clips import render, right_answers
from sharp_compile.tools.batch.folder import videos
from sharp_compile.tools.demo.video import read
from sharp_compile.tools.evaluation.dataset import hold_out


def test_the_files_show_what_was_drawn(tmp_path):
    scenes = render(tmp_path, 3)
    assert videos(tmp_path) == list(scenes)
    exam = hold_out("sparse", 3, 0)
    for name, frames in zip(scenes, exam.frames, strict=True):
        assert np.array_equal(read(tmp_path / name, len(frames)).frames, frames)


def test_right_answers_are_those_of_the_scenes_that_have_one(tmp_path):
    scenes = render(tmp_path, 8)
    numbers = ("one", "two", "three", "four")
    counted = right_answers(scenes, "how-many objects in-all ?")
    assert counted == {name: numbers[len(scene.objects) - 1] for name, scene in scenes.items()}
    rings = right_answers(scenes, "color of ring ?")
    for name, scene in scenes.items():
        colors = [thing.color for thing in scene.objects if thing.shape == "ring"]
        assert rings.get(name) == (colors[0] if len(colors) == 1 else None)
