"""The page as text: all facts are on it, nothing in it can run or be fetched that does not belong there."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import sharp_compile
from sharp_compile.explanation import Explanation
from tests.tools.html_report.explained import BEFORE, BEHIND, FRAMES, KEPT, LENGTH, SIDE, VISUAL, explanation, white
from tests.toy import Toy, toy_inputs


class Reader(HTMLParser):
    """The text of a page, and the values of what could be addresses."""

    def __init__(self, page):
        super().__init__()
        self.words, self.addresses, self.tags, self.inside = [], [], [], None
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside not in ("style", "script"):
            self.words.append(data)


def read(made, tmp_path, *arguments, **named):
    made.to_html(tmp_path / "page.html", *arguments, **named)
    return Reader((tmp_path / "page.html").read_text())


def test_the_facts_are_on_the_page(tmp_path):
    page = read(explanation(), tmp_path, title="Which one?")
    after = BEFORE + BEHIND + KEPT
    assert "Which one?" in page.text
    assert f"{KEPT} of {VISUAL} visual tokens of each of 2 rows are kept after layer 3" in page.text
    assert f"from {LENGTH} to {after} tokens" in page.text
    assert "8.00 GFLOP 2.00 GFLOP 25.0 %" in page.text
    cached = 2 * LENGTH + 2 * (BEFORE + BEHIND + VISUAL // 2) + 2 * after
    assert f"{6 * LENGTH:.2f} kB {cached:.2f} kB" in page.text
    for name, tokens in (
        ("layers 0 to 1", LENGTH),
        ("layers 2 to 3", BEFORE + BEHIND + VISUAL // 2),
        ("layers 4 to 5", after),
    ):
        assert f"{name} {tokens} tokens" in page.text
    assert "Layer 1 computes only keys and values" in page.text
    assert "frame 0 : 18 of 36 kept" in page.text.replace("frame 0:", "frame 0 :")
    assert f"segment kept tokens 0 {KEPT} {2 * SIDE**2} 1 0 {2 * SIDE**2}" in page.text
    assert page.tags.count("figure") == 2 * FRAMES


def test_the_page_needs_no_network_and_runs_nothing_of_what_it_shows(tmp_path):
    page = read(explanation(), tmp_path, title='"><img src=x onerror=alert(1)>')
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert page.tags.count("script") == 1
    assert "layer 2 <script>alert(1)</script> is not understood" in page.text
    assert "found <b>here</b> & there" in page.text and "b" not in page.tags


def test_frames_can_be_given(tmp_path):
    own = read(explanation(), tmp_path).addresses
    given = read(explanation(), tmp_path, white()).addresses
    assert len(own) == len(given) and own != given
    one = explanation(batch=1)
    assert read(one, tmp_path, white(1)[0]).addresses == read(one, tmp_path, white(1)).addresses


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (white(1), "frames are 1 arrays, the batch has 2 rows"),
        ([frame.astype(np.float32) for frame in white()], r"frames\[0\] must be uint8 \[T, H, W, 3\], it is float32"),
        (
            [frame[..., :1] for frame in white()],
            r"frames\[0\] must be uint8 \[T, H, W, 3\], it is uint8 \[4, 48, 48, 1\]",
        ),
    ],
)
def test_bad_frames_leave_the_old_page(frames, message, tmp_path):
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(ValueError, match=message):
        explanation().to_html(tmp_path / "page.html", frames)
    assert (tmp_path / "page.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_what_is_not_known_is_said(tmp_path):
    made = explanation(flops=(5, None))
    made = Explanation(made.graphs, (), {})
    page = read(made, tmp_path)
    assert "Operations were not counted" in page.text
    assert "The call returned no cache" in page.text
    assert "Places of tokens: the shapes of the inputs do not tell" in page.text
    assert "frame 3: 0 of 36 kept" in page.text, "the graph's own frames, where the inputs show none"


def test_nothing_pruned(tmp_path):
    made = explanation()
    page = read(Explanation(made.graphs[:2]), tmp_path)
    assert "Nothing was pruned in this call" in page.text
    assert "is not understood" in page.text
    assert "figure" not in page.tags


def test_scores_that_are_not_numbers_are_no_bad_page(tmp_path):
    made = explanation()
    scores = made.graphs[-1].scores.clone()
    scores[:, BEFORE] = float("inf")
    made.graphs[-1].scores = scores
    made.to_html(tmp_path / "page.html")
    assert "Infinity" not in (tmp_path / "page.html").read_text()


def test_a_real_call(tmp_path, capsys):
    model = Toy()
    model.compile(backend="sharp", options={"inner": "eager", "retention": 0.25})
    made = sharp_compile.explain(model, **toy_inputs())
    capsys.readouterr()
    (graph,) = made.graphs
    before, after = graph.flops
    assert 0 < after < before
    assert graph.frame.shape == graph.scores.shape == graph.segment.shape
    torch.testing.assert_close(graph.frame >= 0, ~graph.scores.isnan())
    page = read(made, tmp_path)
    assert "5 of 20 visual tokens are kept after layer 1" in page.text


def test_an_explanation_stays_as_it_was(capsys):
    model = Toy()
    model.compile(backend="sharp", options={"inner": "eager", "retention": 0.25})
    made = sharp_compile.explain(model, **toy_inputs())
    kept = made.graphs[0].kept.clone()
    model(**{name: value + 1 if value.is_floating_point() else value for name, value in toy_inputs().items()})
    torch.testing.assert_close(made.graphs[0].kept, kept)
    capsys.readouterr()
