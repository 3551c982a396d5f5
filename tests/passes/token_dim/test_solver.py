"""What the probe accepts, and what it declines, node by node."""

import pytest
import torch
from sharp_compile.passes.errors import CannotPrune
from sharp_compile.passes.fx.nodes import example_tensor
from sharp_compile.passes.token_dim.plan import Gather, Length
from sharp_compile.passes.token_dim.solver import probe

from tests.graphs import Recorder


def plans(after, *side, shape=(1, 48, 32), stages=1, dynamic=None):
    """Plans of ``after(hidden, *side)`` on hidden states of `shape`, cut where they come in."""
    recorder = Recorder()

    def model(embeddings, *side):
        return after(embeddings * 2, *side)

    embeddings = torch.randn(shape)
    torch.compile(model, backend=recorder, fullgraph=True, dynamic=dynamic)(embeddings, *side)
    (module,) = recorder.modules
    source = next(node for node in module.graph.find_nodes(op="placeholder") if example_tensor(node) is not None)
    cut = next(iter(source.users))
    return probe(module.graph, source, [cut])


def rewrites(after, *side, **how):
    return [rewrite for plan in plans(after, *side, **how).values() for rewrite in plan.rewrites if rewrite is not None]


def test_work_on_single_tokens_needs_no_repair():
    assert rewrites(lambda h, w: torch.nn.functional.silu(h @ w) + h.mean(-1, keepdim=True), torch.randn(32, 32)) == []


def test_a_literal_length_becomes_the_new_one():
    assert rewrites(lambda h: h.view(1, 48, 4, 8).transpose(1, 2)) == [Length()]
    assert rewrites(lambda h: h.view(48, 32)) == [Length()]


def test_a_view_that_fits_by_accident_is_not_taken():
    # 48 tokens of 32 channels fit into view(1, 32, 48); tokens and channels would change places.
    with pytest.raises(CannotPrune):
        plans(lambda h: h.view(1, 32, 48) + 1)
    # A wildcard would swallow the tokens that are missing.
    assert rewrites(lambda h: h.view(1, 48, -1, 8)) == [Length()]


def test_sizes_that_equal_the_length():
    square = torch.randn(48, 48)
    assert rewrites(lambda h, w: h @ w, square, shape=(1, 48, 48)) == []
    assert rewrites(lambda h: h.view(1, 48, 48, 1), shape=(1, 48, 48)) == [Length()]
    table = rewrites(lambda h, w: h * w, torch.randn(1, 48, 48), shape=(1, 48, 48))
    assert table == [Gather(0, (1,))]


@pytest.mark.parametrize(
    ("computes", "dynamic"),
    [
        (lambda h: h * h.shape[1], False),
        (lambda h: h * h.shape[1], True),
        (lambda h: h / h.shape[1] ** 0.5, True),
        (lambda h: h + (h.shape[1] - 1), True),
    ],
)
def test_a_number_of_tokens_in_a_layer_is_declined(computes, dynamic):
    """What the model would compute with fewer tokens is not what the number gives as it was traced."""
    with pytest.raises(CannotPrune, match="the number of tokens of the whole sequence"):
        plans(computes, dynamic=dynamic)


@pytest.mark.parametrize(
    "side, gather",
    [((48, 32), (0,)), ((1, 48, 32), (1,)), ((1, 48, 1), (1,))],
)
def test_a_side_tensor_is_gathered_where_tokens_meet_it(side, gather):
    assert rewrites(lambda h, s: h + s, torch.randn(side)) == [Gather(0, gather)]


def test_rows_are_found_too():
    assert rewrites(lambda h, s: h + s, torch.randn(2, 48, 32), shape=(2, 48, 32)) == [Gather(0, (1,), 0)]
    assert rewrites(lambda h, s: h + s, torch.randn(1, 48, 32), shape=(2, 48, 32)) == [Gather(0, (1,), 0)]
    new = [Gather(0, (0,), 0, batch_is_new=True)]
    assert rewrites(lambda h, s: h + s, torch.randn(48, 32), shape=(2, 48, 32)) == new
    assert rewrites(lambda h, s: h + s, torch.randn(2, 1, 32), shape=(2, 48, 32)) == []


def test_rows_and_tokens_in_one_axis():
    found = rewrites(lambda h, s: h.view(96, 32) + s, torch.randn(96, 32), shape=(2, 48, 32))
    assert found == [Length(times_batch=True), Gather(0, (0,), 0, merged=True)]


def test_a_mask_is_gathered_along_both_axes():
    def attend(h, mask):
        q = h.view(1, 48, 4, 8).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    assert rewrites(attend, torch.ones(1, 1, 48, 48, dtype=torch.bool)) == [Length(), Gather(0, (2, 3))]


def test_an_index_has_places_for_every_token():
    """Torch takes the first tokens where an index has fewer, which a full one must not pass for."""
    index = torch.zeros(1, 48, 4, dtype=torch.long)
    assert rewrites(lambda h, s: h.gather(-1, s), index) == [Gather(0, (1,))]
    assert rewrites(lambda h, s: h.scatter(-1, s, 0.0), index) == [Gather(0, (1,))]
    with pytest.raises(CannotPrune, match="no place for each token"):
        plans(lambda h, s: h.gather(-1, s), index[:, :1])


@pytest.mark.parametrize(
    "after, why",
    [
        (lambda h, s: h[:, 3], "position 3"),
        (lambda h, s: h[:, 2:9], "from 2 to 9"),
        (lambda h, s: h[:, ::2], "takes the tokens"),
        (lambda h, s: h[:, s], "index"),
        (lambda h, s: h[:, [3, 9]], "positions of a list"),
        (lambda h, s: h.index_select(1, s), "index_select"),
        (lambda h, s: h.mean(1), "runs over tokens"),
        (lambda h, s: h.cumsum(1), "runs over tokens"),
        (lambda h, s: h.flip(1), "flip"),
        (lambda h, s: h.roll(1, 1), "roll"),
        (lambda h, s: torch.cat([h, h], 1), "appends tokens"),
        (lambda h, s: h.split(24, 1)[0], "splits the sequence"),
        (lambda h, s: torch.nn.functional.pad(h, (0, 0, 0, 1)), "pads the sequence"),
        (lambda h, s: h.transpose(1, 2).reshape(1, 48, 32), "apart"),
        (lambda h, s: torch.nn.functional.conv1d(h.transpose(1, 2), torch.ones(1, 32, 1)), "conv"),
    ],
)
def test_tokens_by_their_place_are_declined(after, why):
    with pytest.raises(CannotPrune, match=why):
        plans(after, torch.arange(5))


@pytest.mark.parametrize(
    "after",
    [
        lambda h: h.view(48, 32).repeat(3, 1).view(3, 48, 32).sum(0),
        lambda h: (h.repeat(1, 3, 1) * 2).view(1, 3, 48, 32),
        lambda h: h.transpose(1, 2).reshape(1, -1).view(1, 32, 48) + 1,
    ],
)
def test_tokens_and_their_copies_in_one_axis_come_out_as_they_went_in(after):
    assert rewrites(after)


@pytest.mark.parametrize(
    "after",
    [
        lambda h: h.view(48, 32).repeat(3, 1).view(48, 3, 32),
        lambda h: (h.repeat(1, 3, 1) * 2).view(1, 48, 3, 32),
        lambda h: h.transpose(1, 2).reshape(1, -1).view(1, 48, 32) + 1,
        lambda h: h.view(48, 32).repeat(32, 1) + h.transpose(1, 2).expand(32, 32, 48).flatten(0, 1).view(48 * 32, 32),
    ],
)
def test_tokens_and_their_copies_that_change_places_are_declined(after):
    with pytest.raises(CannotPrune, match="takes tokens apart"):
        rewrites(after)


@pytest.mark.parametrize("rows", [1, 2])
def test_no_channels_are_no_tokens(rows):
    assert rewrites(lambda h: h[..., :0].view(rows, 1, 48, 0), shape=(rows, 48, 32)) == [Length()]


def test_rows_that_are_repeated_are_declined():
    with pytest.raises(CannotPrune, match="repeats more than tokens"):
        rewrites(lambda h: h.repeat(2, 1, 1), shape=(2, 48, 32))


@pytest.mark.parametrize("after", [lambda h: h[:, -1], lambda h: h[:, -1:], lambda h: h[:, -3:], lambda h: h[:, 0:]])
def test_the_last_tokens_may_be_taken(after):
    assert rewrites(after) == []


def test_writes_into_older_tensors_are_declined():
    def write(h, buffer):
        buffer[:, :48] = h
        return buffer + 0

    for length in (64, 48):  # a buffer longer than the sequence, and one that happens to fit
        with pytest.raises(CannotPrune, match="made before the cut"):
            plans(write, torch.zeros(1, length, 32))


def test_writes_into_new_tensors_are_fine():
    def write(h):
        new = h + 1
        new.mul_(2)
        new[..., 0] = 0
        return new

    assert rewrites(write) == []


def test_the_reason_names_the_line():
    with pytest.raises(CannotPrune, match=r"flip \(File .*test_solver.py"):
        plans(lambda h: h.flip(1))
