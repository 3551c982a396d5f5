"""The oracle and the tiny models are themselves tested, against things simpler than hooks.

A forward call is compared with the decoder written out as a loop, FastV's scores with the weights that eager
attention returns, and decoding on a pruned cache with a prefill of the longer sequence (teacher forcing).
"""

import pytest
import torch
from torch.testing import assert_close

from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, ARCHITECTURES, shared_model, text_only, visual_mask
from tests.architectures.base import TEXT, VOCABULARY
from tests.rotation import seed
from tests.support import NEW, TOLERANCE, cache_of, extended, forward, generate, second_turn

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
# A sixth of the further ones is not slow, by the seed.
all_architectures = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ARCHITECTURES or (place - seed()) % 6 == 0 else [pytest.mark.slow])
        for place, name in enumerate(ALL_ARCHITECTURES)
    ],
)
every_ragged_architecture = pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if a.ragged])


class Remember:
    """FastV, which keeps what it was asked."""

    def __call__(self, tokens, counts):
        attention = tokens.state().weights()[:, :, -1]
        self.visual, self.attention, self.counts = tokens.visual, attention, counts
        return oracle.fastv(tokens, counts)


def extended_positions(kept, length, new):
    """The kept positions [B, S'] of a sequence of this length, and `new` positions after it."""
    return torch.cat([kept, torch.arange(length, length + new).expand(len(kept), new)], 1)


# The tiny models


@every_architecture
def test_a_model_depends_on_its_visual_tokens(name):
    model, inputs = shared_model(name), ARCHITECTURES[name].inputs(shared_model(name), batch=4)
    plain = generate(model, inputs)
    with oracle.prune(model, retention=0.1):
        pruned = generate(model, inputs)
    assert (plain.sequences != pruned.sequences).any(1).sum() >= 2
    difference = (plain.logits[0] - pruned.logits[0]).std(1)
    assert (difference > 0.1 * plain.logits[0].std(1)).all()


@every_architecture
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("retention", [0.5, 0.25, 0.1])
def test_a_model_is_sure_of_its_tokens_and_of_its_scores(name, layer, retention):
    """Near-ties would let a difference of rounding change what is generated or kept."""
    model = shared_model(name)
    inputs = ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])
    selector = Remember()
    with oracle.prune(model, layer=layer, retention=retention, selector=selector):
        best = forward(model, inputs).logits[:, -1].topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 0.01
    for row, visual, count in zip(selector.attention.mean(1), selector.visual, selector.counts, strict=True):
        ranked = row[visual].sort(descending=True).values
        assert ranked[0] < 0.9
        assert ranked[count - 1] - ranked[count] > 1e-6


@every_architecture
def test_the_attention_implementation_changes_no_weights(name):
    model, other = shared_model(name), shared_model(name, attn_implementation="eager")
    inputs = ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])
    assert other.config._attn_implementation == "eager"
    real = inputs["attention_mask"].bool()
    assert_close(forward(model, inputs).logits[real], forward(other, inputs).logits[real], **TOLERANCE)


@every_architecture
def test_a_row_of_a_batch_can_be_had_alone(name):
    architecture, model = ARCHITECTURES[name], shared_model(name)
    batch = forward(model, architecture.inputs(model, text=[12, 9], seed=3)).logits
    for row, text in enumerate([12, 9]):
        alone = forward(model, architecture.inputs(model, text=text, seed=3 + row)).logits
        assert_close(batch[row, -alone.shape[1] :], alone[0], **TOLERANCE)


# What is kept


@pytest.mark.parametrize(
    ("length", "visual", "retention", "expected"),
    [
        (45, 33, 1.0, 45),
        (45, 33, 0.1, 16),
        (42, 30, 0.1, 15),  # in floats 0.1 * 30 is more than 3
        (42, 30, 0.3333333, 22),  # six decimals: 9.99999 tokens
        (42, 30, 1e-6, 13),
        (12, 0, 0.1, 12),
    ],
)
def test_pruned_length(length, visual, retention, expected):
    assert oracle.pruned_length(length, visual, retention) == expected


def tokens_of(*rows):
    """Tokens from rows of letters: p(adding), t(ext), v(isual). Half of the visual tokens go before other padding."""
    visual, padding = (torch.tensor([[c == kind for c in row] for row in rows]) for kind in "vp")
    leading = torch.tensor([[not row[: at + 1].strip("p") for at in range(len(row))] for row in rows])
    least = [-(-row.count("v") // 2) for row in rows]
    return oracle.Tokens(visual, padding, leading, least, state=None, frame=oracle.frames(visual, None), layer=1)


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [
        # number floor(j * 7 / 3) of seven: 0, 2, 4
        (["ttvvvvvvvt"], 6, [[0, 1, 2, 4, 6, 9]]),
        # padding goes before any visual token does: 7 - 1 of row 0, 7 - 3 of row 1
        (["ptvvvvvvtt", "pppvvvvttt"], 7, [[1, 2, 3, 5, 6, 8, 9], [3, 4, 5, 6, 7, 8, 9]]),
        # where padding stays it is the lowest
        (["pppvvvvttt"], 9, [[0, 1, 3, 4, 5, 6, 7, 8, 9]]),
        # two of four visual tokens go before the padding at the end, of which the last goes first
        (["ptvvvvtpp"], 6, [[1, 2, 4, 6, 7, 8]]),
        (["ptvvvvtpp"], 5, [[1, 2, 4, 6, 7]]),
        (["tpvvvvtpp"], 5, [[0, 1, 2, 4, 6]]),
        # the other two go after all padding
        (["ptvvvvtpp"], 3, [[1, 2, 6]]),
        (["ttvv"], 4, [[0, 1, 2, 3]]),
        (["ttvv"], 2, [[0, 1]]),
    ],
)
def test_uniform_keeps(rows, length, expected):
    assert oracle.keep(tokens_of(*rows), length, oracle.uniform).tolist() == expected


def test_the_best_scores_are_kept_and_ties_go_to_the_lower_position():
    scores = torch.tensor([[9.0, 0.1, 0.3, 0.2, 0.2, 0.2, 9.0]])
    assert oracle.keep(tokens_of("tvvvvvt"), 5, lambda tokens, counts: scores).tolist() == [[0, 2, 3, 4, 6]]


def test_text_is_never_dropped():
    with pytest.raises(ValueError, match="more text tokens than the 5 positions"):
        oracle.keep(tokens_of("tvvvvvvt", "tttttttt"), 5, oracle.uniform)


@every_architecture
@pytest.mark.parametrize("layer", [1, 2])
def test_fastv_scores_by_the_weights_of_eager_attention(name, layer):
    model = shared_model(name, attn_implementation="eager")
    inputs = ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])
    selector = Remember()
    with oracle.prune(model, layer=layer, selector=selector):
        forward(model, inputs)
    weights = forward(model, inputs | {"output_attentions": True}).attentions[layer]
    assert_close(selector.attention, weights[:, :, -1], atol=1e-6, rtol=1e-5)


# A forward call


@every_architecture
@pytest.mark.parametrize("selector", ["uniform", "fastv"])
def test_retention_one_is_the_plain_model(name, selector):
    model = shared_model(name)
    inputs = ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])
    plain = generate(model, inputs)
    with oracle.prune(model, retention=1.0, selector=selector) as run:
        pruned = generate(model, inputs)
    assert run.kept[0].equal(torch.arange(inputs["input_ids"].shape[1]).expand(2, -1))
    assert pruned.sequences.equal(plain.sequences)
    assert torch.stack(pruned.logits).equal(torch.stack(plain.logits))


@every_architecture
def test_lengths(name):
    model = shared_model(name)
    inputs = ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])
    length = inputs["input_ids"].shape[1]
    short = length - int(visual_mask(model, inputs)[0].sum()) + 4  # ceil of a tenth of 32 or 33
    with oracle.prune(model, retention=0.1, layer=2) as run:
        output = forward(model, inputs)
    assert run.kept[0].shape == (2, short)
    assert output.logits.shape[:2] == (2, short)
    assert oracle.cache_lengths(output.past_key_values) == [length] * 3 + [short] * 3
    for tensors, expected in zip(oracle.cache_tensors(output.past_key_values), [length] * 3 + [short] * 3, strict=True):
        assert {name: tensor.shape for name, tensor in tensors.items()} == dict.fromkeys(
            ("keys", "values"), (2, 2, expected, 16)
        )


def entering_the_decoder(model, inputs):
    """The hidden states [B, S, C] and the rotary tables that enter the first layer."""
    entered = {}
    hook = oracle.decoder_layers(model)[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.update(kwargs, hidden=args[0]), with_kwargs=True
    )
    forward(model, inputs)
    hook.remove()
    return entered["hidden"], entered["position_embeddings"]


@every_architecture
@pytest.mark.parametrize("stages", [[(1, 0.25)], [(0, 0.5), (2, 0.2), (4, 0.05)]])
def test_equals_the_decoder_written_out(name, stages):
    """One row without a mask: the layers one after the other, hidden states and rotary tables indexed."""
    model = shared_model(name)
    inputs = ARCHITECTURES[name].inputs(model)
    with oracle.prune(model, stages=stages, selector="fastv") as run:
        pruned = forward(model, inputs)
    assert all(set(b[0].tolist()) < set(a[0].tolist()) for a, b in zip(run.kept, run.kept[1:], strict=False))

    decoder, layers = model.get_decoder(), oracle.decoder_layers(model)
    hidden, tables = entering_the_decoder(model, inputs)
    positions = torch.arange(hidden.shape[1])
    kept = dict(zip((layer for layer, _ in stages), run.kept, strict=True))
    with torch.no_grad():
        for index, layer in enumerate(layers):
            rotary = tuple(table[:, positions] for table in tables)
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
            if index in kept:
                hidden = hidden[:, torch.isin(positions, kept[index])]
                positions = kept[index][0]
        logits = model.lm_head(decoder.norm(hidden))
    assert_close(pruned.logits, logits, **TOLERANCE)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl"])
@pytest.mark.parametrize("stages", [[(1, 0.25)], [(0, 0.5), (2, 0.2)]])
def test_merging_equals_the_decoder_written_out(name, stages):
    """Each token at an even place of the running sequence stands for the next one, if both are visual."""
    model = shared_model(name)
    inputs = ARCHITECTURES[name].inputs(model)

    def evens(tokens, counts):
        place = torch.arange(tokens.visual.shape[1])[None]
        return oracle.fastv(tokens, counts) + (place % 4 == 0), place - place % 2

    with oracle.prune(model, stages=stages, selector=evens) as run:
        merged = forward(model, inputs)
    decoder, layers = model.get_decoder(), oracle.decoder_layers(model)
    hidden, tables = entering_the_decoder(model, inputs)
    positions, visual = torch.arange(hidden.shape[1]), visual_mask(model, inputs)[0]
    cuts, means = dict(zip((layer for layer, _ in stages), run.kept, strict=True)), 0
    with torch.no_grad():
        for index, layer in enumerate(layers):
            rotary = tuple(table[:, positions] for table in tables)
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
            if index in cuts:
                stays = torch.isin(positions, cuts[index][0])
                states = hidden.clone()
                for place in range(0, len(positions) - 1, 2):
                    if stays[place] and not stays[place + 1] and visual[positions[place : place + 2]].all():
                        states[:, place] = (hidden[:, place] + hidden[:, place + 1]) / 2
                        means += 1
                hidden, positions = states[:, stays], positions[stays]
        logits = model.lm_head(decoder.norm(hidden))
    assert means > 1
    assert_close(merged.logits, logits, **TOLERANCE)


def test_merge():
    states = torch.tensor([[[0.0], [1], [2], [3], [40], [5], [60]]])
    visual = torch.tensor([[False, True, True, True, True, True, True]])
    into = torch.tensor([[1, 1, 1, 1, 4, 4, 0]])
    # Text (0) is in no mean, nor stands it for 6. Of the dropped 2, 3, 4 and 6, two stand under a kept one.
    merged = oracle.merge(states, torch.tensor([[0, 1, 5]]), into, visual)
    assert merged[0, [0, 1, 5], 0].tolist() == [0, 2, 5]


@every_architecture
@pytest.mark.parametrize("selector", ["uniform", "fastv"])
@pytest.mark.parametrize("padding", [3, 20])
def test_a_padded_row_equals_the_row_alone(name, selector, padding):
    """Kept positions the same, that is: in the batch the padding goes first, so the row keeps more."""
    architecture, model = ARCHITECTURES[name], shared_model(name)
    with oracle.prune(model, retention=0.5, selector=selector) as run:
        batch = forward(model, architecture.inputs(model, text=[12 + padding, 12])).logits
    real = run.kept[0][1] >= padding
    assert (~real).sum() == max(0, padding - 16)  # 16 are dropped from each row
    with oracle.prune(model, positions=run.kept[0][1:, real] - padding):
        alone = forward(model, architecture.inputs(model, text=12, seed=1)).logits
    assert_close(batch[1, real], alone[0], **TOLERANCE)


@every_ragged_architecture
def test_rows_with_different_numbers_of_visual_tokens(name):
    architecture, model = ARCHITECTURES[name], shared_model(name)
    inputs = architecture.inputs(model, frames=[8, 4])
    visual = visual_mask(model, inputs)
    assert visual.sum(1).tolist() == [32, 16]
    with oracle.prune(model, retention=0.5) as run:
        forward(model, inputs)
    # V = 24, 12 are dropped: 12 visual tokens of row 0, padding of row 1
    assert visual.gather(1, run.kept[0]).sum(1).tolist() == [20, 16]


# Decoding on a pruned cache


@every_architecture
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [{}, {"batch": 2, "pad": [0, 3]}, {"text": [32, 12]}], ids=["1", "2", "kept-padding"])
def test_decoding_equals_a_prefill_of_the_longer_sequence(name, attention, rows):
    model = shared_model(name, attn_implementation=attention)
    inputs = ARCHITECTURES[name].inputs(model, **rows)
    length = inputs["input_ids"].shape[1]
    with oracle.prune(model, stages=[(1, 0.5), (3, 0.25)], selector="fastv") as run:
        output = generate(model, inputs)
    first, last = (kept.shape[1] for kept in run.kept)
    grown = [n + NEW - 1 for n in [length] * 2 + [first] * 2 + [last] * 2]
    assert oracle.cache_lengths(output.past_key_values) == grown

    with oracle.prune(model, retention=0.25, selector="fastv") as run:
        output = generate(model, inputs)
    longer = extended(inputs, output.sequences[:, length:-1])
    with oracle.prune(model, positions=extended_positions(run.kept[0], length, NEW - 1)):
        forced = forward(model, longer).logits[:, -NEW:]
    assert_close(torch.stack(output.logits, 1), forced, **TOLERANCE)


@every_architecture
def test_beams_have_the_probability_that_their_tokens_have(name):
    model = shared_model(name)
    inputs = ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])
    length = inputs["input_ids"].shape[1]
    with oracle.prune(model, retention=0.25):
        output = generate(model, inputs, num_beams=3, num_return_sequences=1, length_penalty=0.0, output_scores=True)
    tokens = output.sequences[:, length:]
    with oracle.prune(model, retention=0.25):
        forced = forward(model, extended(inputs, tokens[:, :-1])).logits[:, -NEW:].log_softmax(-1)
    assert_close(forced.gather(2, tokens[..., None]).sum((1, 2)), output.sequences_scores, **TOLERANCE)


@every_architecture
@pytest.mark.parametrize("rows", [{}, {"batch": 2, "pad": [0, 3]}], ids=["1", "2"])
def test_a_second_turn_of_text_goes_on_the_pruned_cache(name, rows):
    model = shared_model(name)
    inputs = ARCHITECTURES[name].inputs(model, **rows)
    length = inputs["input_ids"].shape[1]
    with oracle.prune(model, retention=0.25) as run:
        first = generate(model, inputs)
        turn = second_turn(inputs, first, text_only(4, len(first.sequences)))
        second = generate(model, turn)
    longer = extended(inputs, second.sequences[:, length:-1])
    new = longer["input_ids"].shape[1] - length
    with oracle.prune(model, positions=extended_positions(run.kept[0], length, new)):
        forced = forward(model, longer).logits[:, -NEW:]
    assert_close(torch.stack(second.logits, 1), forced, **TOLERANCE)


# All architectures, further ones too: cheaply

# The last layer after which features are added again.
DEEPSTACK = dict.fromkeys(
    ("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker", "cosmos3_omni", "cohere_compass", "granite_docling"), 2
)
WITHOUT_ATTENTION = {"linear_attention", "conv", "mlp"}
# A prefill of a longer sequence does something else than decoding, and why.
DECODES_OTHERWISE = {
    "dots3_note": "of many equal scores an indexer takes the first, which change with the length, unpruned too",
    "inkling2": "a decoding step counts distances in the cache, without what was dropped",
    "inkling2_loop": "a padded row has other positions in generate than in forward, unpruned too",
    "inkling_mm_model": "a decoding step counts distances in the cache, without what was dropped",
    "qwen4_exp": "an indexer reads the rotary tables by places in the cache, without what was dropped",
    "mistral_large4": "the scale of a query grows with its position, which `generate` counts without padding",
    "instructblipvideo": "its generate calls the language model past the model",
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), "a decoding step counts padding among the positions, unpruned too"),
}
TAKES_NO_TEXT_ALONE = {
    "instructblipvideo": "its pixel values and query tokens are required arguments",
    "instructblip": "its pixel values and query tokens are required arguments",
    "blip-2": "its pixel values are required arguments",
    "kosmos-2": "it wants pixel values or features",
}


def padded(name, **overrides):
    """A model, and a batch of two of which one row is padded."""
    model = shared_model(name, **overrides)
    return model, ALL_ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])


@all_architectures
def test_the_cut_moves_to_a_layer_that_serves(name):
    """FastV's, asked for after layer 0."""
    model, inputs = padded(name)
    length = inputs["input_ids"].shape[1]
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    first = next(index for index, kind in enumerate(kinds) if kind not in WITHOUT_ATTENTION)
    with oracle.prune(model, retention=1.0, layer=0, selector="fastv") as run:
        output = forward(model, inputs)
    assert run.layers == [max(first, DEEPSTACK.get(name, 0))]
    assert run.kept[0].equal(torch.arange(length).expand(2, -1))
    real = inputs["attention_mask"].bool()
    assert_close(output.logits[real], forward(model, inputs).logits[real], **TOLERANCE)


@all_architectures
def test_layers_up_to_the_cut_are_untouched_and_later_ones_are_short(name):
    model, inputs = padded(name)
    length = inputs["input_ids"].shape[1]
    plain = forward(model, inputs)
    with oracle.prune(model, retention=0.25, layer=2) as run:
        pruned = forward(model, inputs)
    assert run.layers == [2]
    short = run.kept[0].shape[1]
    assert pruned.logits.shape[:2] == (2, short)
    difference = (pruned.logits[:, -1] - plain.logits[:, -1]).std(1)
    size = plain.logits[:, -1].abs().median(1).values  # some models give the lowest number to words of images
    assert (difference > 0.01 * size).all()
    tensors = zip(*(oracle.cache_tensors(cache_of(output)) for output in (pruned, plain)), strict=True)
    for index, (ours, theirs) in enumerate(tensors):
        assert ours.keys() == theirs.keys()
        for kind, our in ours.items():
            assert not our.isnan().any()
            if index <= 2:
                assert our.equal(theirs[kind])
            elif "states" not in kind:
                held = theirs[kind].shape[-2]
                assert our.shape[-2] == (short if held == length else min(held, short))


@all_architectures
def test_fastv_scores_are_the_weights_of_eager_attention(name):
    model, inputs = padded(name)
    selector = Remember()
    with oracle.prune(model, selector=selector) as run:
        forward(model, inputs)
    eager = shared_model(name, attn_implementation="eager")
    taken = []
    blocks = oracle.decoder_layers(eager)
    hooks = [
        module.register_forward_hook(lambda module, args, output: taken.append(output[1]))
        for path, module in blocks[run.layers[0]].named_children()
        if path in ("self_attn", "mixer")
    ]
    forward(eager, inputs)
    for hook in hooks:
        hook.remove()
    assert_close(selector.attention, taken[0][:, :, -1], atol=1e-5, rtol=1e-4)


@all_architectures
def test_decoding_on_any_pruned_cache_equals_a_prefill(name):
    """Sliding windows count original positions in both."""
    if name in DECODES_OTHERWISE:
        pytest.skip(DECODES_OTHERWISE[name])
    model, inputs = padded(name)
    length = inputs["input_ids"].shape[1]
    special = [token for token in range(VOCABULARY) if token not in TEXT]  # some mean something in a prompt only
    with oracle.prune(model, retention=0.25) as run:
        output = generate(model, inputs, max_new_tokens=3, suppress_tokens=special)
    longer = extended(inputs, output.sequences[:, length:-1], ALL_ARCHITECTURES[name].generated_type)
    with oracle.prune(model, positions=extended_positions(run.kept[0], length, 2)):
        forced = forward(model, longer).logits[:, -3:]
    assert_close(torch.stack(output.logits, 1), forced, **TOLERANCE)


@all_architectures
def test_text_alone_is_not_pruned(name):
    if name in TAKES_NO_TEXT_ALONE:
        pytest.skip(TAKES_NO_TEXT_ALONE[name])
    model = shared_model(name)
    ids = text_only(20, batch=2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = forward(model, inputs).logits
    with oracle.prune(model, retention=0.25) as run:
        assert forward(model, inputs).logits.equal(plain)
    assert run.kept == []


# What can't be pruned by hand is refused


def test_a_static_cache_is_refused():
    model, inputs = padded("llava_onevision")
    with oracle.prune(model), pytest.raises(NotImplementedError, match="static"):
        generate(model, inputs, cache_implementation="static")


def test_an_argument_that_nobody_knows_is_refused(monkeypatch):
    model, inputs = padded("llava_onevision")
    monkeypatch.delitem(oracle.LAYOUTS, "position_embeddings")
    with oracle.prune(model), pytest.raises(NotImplementedError, match="the argument position_embeddings"):
        forward(model, inputs)


def test_sharp_is_refused_where_keys_are_more_than_rotated():
    model, inputs = padded("qwen3_vl")
    with oracle.prune(model, selector="sharp"), pytest.raises(NotImplementedError, match="more than a rotation"):
        forward(model, inputs)


def test_cuts_that_meet_are_refused():
    model, inputs = padded("qwen3_vl")
    with oracle.prune(model, stages=[(0, 0.5), (1, 0.25)]), pytest.raises(NotImplementedError, match="meet"):
        forward(model, inputs)


@pytest.mark.parametrize("layer", [5, 9])
def test_a_cut_after_the_last_layer_is_refused(layer):
    model, inputs = padded("llava_onevision")
    with oracle.prune(model, layer=layer), pytest.raises(ValueError, match="no layer"):
        forward(model, inputs)


def test_nothing_is_left_on_the_model():
    model = shared_model("llava_onevision")
    before = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    with pytest.raises(RuntimeError), oracle.prune(model):
        raise RuntimeError
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == before
