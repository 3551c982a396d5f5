"""Which files of a folder are videos."""

import os
import re

import pytest

from sharp_compile.tools.batch import BatchError
from sharp_compile.tools.batch.folder import videos


def test_all_videos_of_all_folders_in_order(tmp_path):
    for name in ("b.mp4", "a/z.MKV", "a/b/c.webm", "notes.txt", ".hidden.mp4", "a/._z.mkv", ".trash/d.mp4", "mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.mov").symlink_to(tmp_path / "nowhere")  # has the name of a video: it is to be told of
    assert videos(tmp_path) == ["a/b/c.webm", "a/z.MKV", "b.mp4", "gone.mov"]


def test_what_has_no_videos_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BatchError, match=rf"^{re.escape(str(tmp_path))}: there are no videos in it.*\*\.mp4"):
        videos(tmp_path)
    for none in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(BatchError, match="there is no such folder"):
            videos(none)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        videos(tmp_path)
