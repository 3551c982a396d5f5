"""Masks are read as what they were made from: at any positions the formula gives what the mask has there."""

import pytest
import sympy
import torch
from sharp_compile.kernels.mask_formula import KEY, QUERY
from sharp_compile.passes.analysis.attention_mask import read_mask
from sharp_compile.passes.fx.nodes import arguments
from torch.fx import Interpreter
from transformers import masking_utils

from tests.graphs import Recorder

ROWS, LENGTH, WINDOW = 3, 11, 4


def padding():
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[0, :3] = mask[1, -2:] = mask[2, 5] = 0
    return mask


BLOCKS = torch.tensor([[-1, -1, 0, 0, 0, -1, 1, 1, -1, -1, -1]]).expand(ROWS, -1).contiguous()
SAMPLES = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]]).expand(ROWS, -1).contiguous()


def transformers_mask(function, use_vmap=False):
    """The mask that transformers makes for a function of positions, which is itself made in the call."""

    def make(mask, table):
        rows, length = mask.shape
        return masking_utils.sdpa_mask(
            rows,
            length,
            length,
            mask_function=function(table),
            attention_mask=mask.bool(),
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=mask.device,
        )

    return make


def causal(table):
    return masking_utils.causal_mask_function


def window(table):
    return masking_utils.sliding_window_causal_mask_function(WINDOW)


def chunks(table):
    return masking_utils.chunked_causal_mask_function(WINDOW, table[:, 0] * 0 + 2)


def blocks(table):
    both = masking_utils.or_masks(masking_utils.causal_mask_function, masking_utils.blockwise_overlay(table))
    return masking_utils.and_masks(masking_utils.sliding_window_overlay(WINDOW), both)


def packed(table):
    same = masking_utils.packed_sequence_mask_function((table == 0).cumsum(1))
    return masking_utils.and_masks(masking_utils.causal_mask_function, same)


def remapped(table):
    return masking_utils.remap_positions_for_packed_sequence(masking_utils.causal_mask_function, table)


def by_hand(mask, table):
    place = torch.arange(mask.shape[1])
    seen = (place[None, :] <= place[:, None])[None, None] & mask.bool()[:, None, None, :]
    return seen & (table.unsqueeze(1).unsqueeze(-1) >= -1)


def in_other_words(mask, table):
    place = torch.arange(mask.shape[1])
    future = torch.gt(place.unsqueeze(0), place.unsqueeze(1))
    return torch.logical_and(~future, mask.ne(0)[:, None, None])


MADE = {
    "causal": transformers_mask(causal),
    "window": transformers_mask(window),
    "chunks": transformers_mask(chunks),
    "blocks": transformers_mask(blocks),
    "packed": transformers_mask(packed),
    "remapped": transformers_mask(remapped),
    "causal in vmap": transformers_mask(causal, use_vmap=True),
    "window in vmap": transformers_mask(window, use_vmap=True),
    "chunks in vmap": transformers_mask(chunks, use_vmap=True),
    "blocks in vmap": transformers_mask(blocks, use_vmap=True),
    "by hand": by_hand,
    "in other words": in_other_words,
}


def compiled(function, *inputs):
    """The graph of a function, and what it is called with."""
    recorder = Recorder()
    torch.compile(function, backend=recorder, fullgraph=True)(*inputs)
    (module,), (given,) = recorder.modules, recorder.inputs
    given = [each.node.hint if isinstance(each, torch.SymInt) else each for each in given]
    (mask,) = arguments(module.graph.output_node())[0]
    return module, given, mask


class Looking(Interpreter):
    """Runs a graph and keeps what its nodes hold."""

    def run(self, *inputs):
        self.held = {}
        return super().run(*inputs)

    def run_node(self, node):
        self.held[node] = super().run_node(node)
        return self.held[node]


@pytest.mark.parametrize(
    ("form", "dynamic"),
    [
        *((form, False) for form in MADE),
        *(pytest.param(form, True, marks=[] if form.startswith("blocks") else pytest.mark.slow) for form in MADE),
    ],
)
def test_formula_gives_the_mask(form, dynamic):
    table = SAMPLES if form in ("packed", "remapped") else BLOCKS
    inputs = padding(), table.clone()
    for each in inputs if dynamic else ():
        torch._dynamo.mark_dynamic(each, 0)
        torch._dynamo.mark_dynamic(each, 1)
    module, given, mask = compiled(MADE[form], *inputs)
    read = read_mask(mask)
    assert read is not None
    looking = Looking(module, garbage_collect_values=False)
    (dense,) = looking.run(*given)
    values = [looking.held[table] for table in read.tables]
    dense = dense.expand(ROWS, 1, LENGTH, LENGTH)
    rows = torch.tensor([[0, 3, 4, 10], [1, 2, 9, 10], [4, 5, 6, 7]])
    columns = torch.tensor([[0, 2, 3, 5, 6, 10], [0, 1, 2, 3, 4, 9], [3, 4, 5, 6, 7, 8]])
    expected = torch.stack([dense[row][:, rows[row]][:, :, columns[row]] for row in range(ROWS)])
    assert read.visible(rows, columns, *values).equal(expected)
    places = torch.arange(LENGTH).expand(ROWS, -1)
    assert read.visible(places, places, *values).equal(dense)
    assert read.sees_itself(places, *values).equal(dense[:, 0].diagonal(dim1=-2, dim2=-1))
    assert read.is_causal == (not form.startswith(("blocks", "remapped")))
    assert read.is_causal_and_padding == form.startswith(("causal", "in other words"))
    if read.is_causal_and_padding:
        order = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        assert (read.visible_keys(places, *values)[:, None, None] & order).equal(dense)


def test_the_formula_of_a_window():
    _, _, mask = compiled(MADE["window"], padding(), BLOCKS)
    read = read_mask(mask)
    visible = sympy.Ne(sympy.Symbol("key_0", integer=True), 0)
    assert read.formula == sympy.And(KEY <= QUERY, KEY > QUERY - WINDOW, visible)
    assert [lookup.table.name for lookup in read.of_key] == ["local_padding_mask"] and not read.of_query


def test_a_cache_that_holds_tokens_in_front():
    def make(mask, held):
        places = torch.arange(mask.shape[1]) + held
        return (torch.arange(mask.shape[1])[None, :] <= places[:, None])[None, None].expand(ROWS, -1, -1, -1)

    _, _, mask = compiled(make, padding(), torch.tensor([3]))
    read = read_mask(mask)
    assert not read.is_causal and len(read.of_query) == 1
    (held,) = read.tables
    assert read_mask(mask, zeros=[held]).is_causal_and_padding


def all_pairs(mask, table):
    return mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1) != table[:, None, :, None]


NOT_UNDERSTOOD = {
    "given": lambda mask, table: (mask[:, None, None] * table[:, None, :, None]).bool() & True,
    "random": lambda mask, table: torch.rand(ROWS, 1, LENGTH, LENGTH) < 0.5,
    "pairs": lambda mask, table: (
        (mask.float().T @ table.float()).bool()[None, None]
        & (torch.arange(LENGTH)[None, :] <= torch.arange(LENGTH)[:, None])
    ),
    "best": lambda mask, table: (
        torch.zeros(ROWS, 1, LENGTH, LENGTH).scatter(3, torch.arange(LENGTH).expand(ROWS, 1, LENGTH, LENGTH), 1.0) > 0
    ),
    "places of places": lambda mask, table: (
        table[torch.arange(ROWS)[:, None, None, None], table[0, torch.arange(LENGTH)[None, None, None]]]
        <= torch.arange(LENGTH)[:, None]
    ),
    "steps": lambda mask, table: (torch.arange(0, 2 * LENGTH, 2)[None, :] <= torch.arange(LENGTH)[:, None])[None, None],
    "flipped": lambda mask, table: (torch.arange(LENGTH).flip(0)[None, :] <= torch.arange(LENGTH)[:, None])[None, None],
    "float": lambda mask, table: (torch.arange(LENGTH)[None, :] * 0.5 <= torch.arange(LENGTH)[:, None])[None, None],
    "a part": lambda mask, table: (torch.arange(LENGTH)[None, :] <= torch.arange(LENGTH + 2)[:, None])[None, None][
        :, :, 2:
    ],
    "bits": lambda mask, table: (torch.arange(LENGTH)[None, :] & torch.arange(LENGTH)[:, None] == 0)[None, None],
    "inverted bits": lambda mask, table: (~torch.arange(LENGTH)[None, :] <= torch.arange(LENGTH)[:, None])[None, None],
    "small counts": lambda mask, table: (torch.arange(LENGTH)[None, :].to(torch.int8) <= torch.arange(LENGTH)[:, None])[
        None, None
    ],
    "small types": lambda mask, table: mask.to(torch.uint8)[:, None, None] - 1 <= torch.arange(LENGTH)[:, None],
    "additive": lambda mask, table: torch.where(
        (torch.arange(LENGTH)[None, :] <= torch.arange(LENGTH)[:, None])[None, None], 0.0, -1e9
    ),
}


@pytest.mark.parametrize("form", NOT_UNDERSTOOD)
def test_what_is_not_understood_stays_a_mask(form):
    _, _, mask = compiled(NOT_UNDERSTOOD[form], padding(), BLOCKS.clamp(min=0))
    assert read_mask(mask) is None
