"""The forms in which features come in among the embeddings, each pruned as the model itself does when it is cut."""

import warnings

import pytest
import torch
from sharp_compile.passes.analysis.injection import find_injections
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from tests.toy import Toy, toy_inputs

OPTIONS = {"inner": "eager", "on_skip": "raise", "selector": "uniform", "retention": 0.25}


def order(mask):
    return (mask.flatten().cumsum(0) - 1).clamp_min(0)


def spread(embeddings, mask, features):
    return features[order(mask)].view(embeddings.shape)


def masked_scatter_(e, m, f):
    return e.clone().masked_scatter_(m[..., None], f)


def by_mask(e, m, f):
    e[m] = f
    return e


def by_mask_of_a_clone(e, m, f):
    return by_mask(e.clone(), m, f)


def index_put(e, m, f):
    return e.index_put((m,), f)


def index_put_(e, m, f):
    return e.clone().index_put_((m,), f)


def where(e, m, f):
    return torch.where(m[..., None], spread(e, m, f), e)


def where_method(e, m, f):
    taken = torch.index_select(f, 0, order(m).mul(m.flatten())).view(e.shape)
    return taken.where(m.unsqueeze(-1), e)


def where_the_other_way_round(e, m, f):
    return torch.where(~m[..., None], e, spread(e, m, f))


def where_of_zeros(e, m, f):
    wide = m.unsqueeze(-1)
    return torch.where(wide, torch.zeros_like(e).masked_scatter(wide, f), e)


def sum_of_parts(e, m, f):
    return e * ~m[..., None] + torch.zeros_like(e).masked_scatter(m[..., None].expand_as(e), f)


def sum_of_products(e, m, f):
    return m[..., None] * spread(e, m, f) + e.masked_fill(m[..., None], 0)


def cat(e, m, f):
    n = f.shape[0] // e.shape[0]
    return torch.cat([e[:, :2], f.view(e.shape[0], n, -1), e[:, 2 + n :]], 1)


def slice_(e, m, f):
    n = f.shape[0] // e.shape[0]
    e = e.clone()
    e[:, 2 : 2 + n] = f.view(e.shape[0], n, -1)
    return e


def slice_from_the_end(e, m, f):
    n = f.shape[0] // e.shape[0]
    e = torch.cat([e[:, 2 + n :], e[:, : 2 + n]], 1)
    e[:, -n:, :] = f.view(e.shape[0], n, -1)
    return e


def twice(e, m, f):
    """Each half by another form, the second into the result of the first."""
    first = m & (m.cumsum(1) <= 8)
    n = 8 * e.shape[0]
    e = where(e, first, f[:n])
    return e.masked_scatter((m & ~first)[..., None], f[n:])


FORMS = [
    *(masked_scatter_, by_mask, by_mask_of_a_clone, index_put, index_put_, where, where_method),
    *(where_the_other_way_round, where_of_zeros, sum_of_parts, sum_of_products, cat, slice_, slice_from_the_end, twice),
]


class Forms(Toy):
    def __init__(self, put, breaks=False):
        super().__init__()
        self.put, self.breaks = put, breaks

    def forward(self, ids, features, cut=None):
        hidden = self.embed(ids)
        if self.breaks:
            torch._dynamo.graph_break()
        hidden = self.put(hidden, ids == 49, features)
        return self.through_layers(hidden, cut=cut)[0]


def name(put):
    return put.__name__


def check(model, visual, calls, dynamic=None):
    fast = torch.compile(model, backend="sharp", options=OPTIONS, dynamic=dynamic)
    for inputs in calls:
        sharp_compile.reset()
        with torch.no_grad():
            actual = fast(**inputs)
            (report,) = [report for report in sharp_compile.reports() if report.pruned] or [None]
            if report is None:
                continue  # a graph that was compiled before the reports were reset
            is_visual = visual(inputs["ids"])
            expected = kept_uniform(is_visual)
            assert report.kept.tolist() == expected.tolist()
            assert_close(actual, model(**inputs, cut={1: expected}), atol=1e-5, rtol=1e-4)


def kept_uniform(is_visual):
    rows = []
    for row in is_visual:
        places = row.nonzero().flatten()
        kept = -(-len(places) // 4)
        chosen = places[torch.arange(kept) * len(places) // kept]
        rows.append(torch.cat([(~row).nonzero().flatten(), chosen]).sort().values)
    return torch.stack(rows)


def at_marks(put):
    """Where the visual tokens of `put` are, by the ids."""

    def visual(ids):
        marks = ids == 49
        if put is not slice_from_the_end:
            return marks
        n = int(marks.sum()) // len(ids)
        return (torch.arange(ids.shape[1]) >= ids.shape[1] - n).expand_as(marks)

    return visual


SOME = [by_mask, where, sum_of_parts, cat, slice_, slice_from_the_end]
"""One of each kind."""


def some_first(forms):
    return [form if form in SOME else pytest.param(form, marks=pytest.mark.slow) for form in forms]


@pytest.mark.parametrize("put", FORMS, ids=name)
def test_every_form_is_pruned(put):
    check(Forms(put), at_marks(put), [toy_inputs(rows=2)])


@pytest.mark.parametrize("put", some_first(FORMS), ids=name)
def test_every_form_is_pruned_with_lengths_that_change(put):
    check(Forms(put), at_marks(put), [toy_inputs(visual=24, text=9)], dynamic=True)


@pytest.mark.parametrize("put", some_first([form for form in FORMS if form is not slice_from_the_end]), ids=name)
def test_every_form_is_pruned_into_embeddings_that_come_in(put):
    check(Forms(put, breaks=True), at_marks(put), [toy_inputs(rows=2)])


def prefix(e, m, f):
    return torch.cat([f.view(e.shape[0], -1, e.shape[2]), e], 1)


def test_features_in_front_of_all_text_are_pruned():
    def visual(ids):
        return torch.arange(ids.shape[1] + 20).expand(len(ids), -1) < 20

    check(Forms(prefix), visual, [toy_inputs(rows=2)])


def row_by_row(e, m, f):
    n = f.shape[0] // e.shape[0]
    parts = [torch.cat([row[:2], f[n * place : n * (place + 1)], row[2 + n :]]) for place, row in enumerate(e)]
    return torch.stack(parts)


def copied_into_a_part(e, m, f):
    n = f.shape[0] // e.shape[0]
    e = e.clone()
    e[:, 2 : 2 + n].copy_(f.view(e.shape[0], n, -1))
    return e


def one_for_many(e, m, f):
    return torch.where(m[..., None], f.view(e.shape[0], -1, e.shape[2]).mean(1, keepdim=True), e)


def row_by_row_counted(e, m, f):
    index = (m.cumsum(1) - 1).clamp_min(0).flatten()
    return torch.where(m[..., None], f[index].view(e.shape), e)


def sum_with_padded_features(e, m, f):
    padded = torch.nn.functional.pad(f.view(e.shape[0], -1, e.shape[2]), (0, 0, 2, 4))
    return e * (1 - m.float()[..., None]) + padded


UNKNOWN = [row_by_row, copied_into_a_part, one_for_many, row_by_row_counted, sum_with_padded_features]


@pytest.mark.parametrize("put", UNKNOWN, ids=name)
def test_what_is_no_known_form_is_said(put):
    model, inputs = Forms(put), toy_inputs(rows=2)
    with torch.no_grad():
        with pytest.raises(CannotPrune, match="data are put among the text embeddings"):
            torch.compile(model, backend="sharp", options=OPTIONS)(**inputs)
        torch._dynamo.reset()
        with pytest.warns(UserWarning, match="data are put among the text embeddings"):
            actual = torch.compile(model, backend="sharp", options=OPTIONS | {"on_skip": "warn"})(**inputs)
        assert_close(actual, model(**inputs))


class Prompted(Forms):
    """A text decoder with learned prompts in front, or put at a mask."""

    def __init__(self, by_cat):
        super().__init__(None)
        self.by_cat = by_cat
        self.prompt = torch.nn.Parameter(torch.randn(20, 16))

    def forward(self, ids):
        self.put = prefix if self.by_cat else where
        return super().forward(ids, self.prompt)


@pytest.mark.parametrize("by_cat", [True, False])
def test_learned_prompts_are_not_visual(by_cat):
    model, ids = Prompted(by_cat), toy_inputs()["ids"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(torch.compile(model, backend="sharp", options=OPTIONS)(ids), model(ids))
    assert not any(report.pruned for report in sharp_compile.reports())


def test_positions_that_are_added_are_not_visual():
    graphs = []

    class Positioned(Forms):
        def forward(self, ids, table):
            return self.embed(ids) + table

    def record(module, inputs):
        graphs.append(module.graph)
        return module.forward

    torch.compile(Positioned(None), backend=record)(toy_inputs()["ids"], torch.randn(1, 26, 16))
    assert find_injections(graphs[0]) == []
