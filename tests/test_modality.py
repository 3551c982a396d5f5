"""Audio beside a video, and alone: what is not asked for is kept, as text is."""

import warnings

import pytest
import torch
from sharp_compile.passes.analysis import modality
from torch import nn
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from tests.toy import Toy

VIDEO, AUDIO = 49, 48


class Omni(Toy):
    """A toy that sees patches by a convolution in space, and hears by one along time."""

    def __init__(self, breaks=False):
        super().__init__()
        self.breaks = breaks
        self.see = nn.Conv2d(3, 16, 4, 4)
        self.hear = nn.Conv1d(5, 16, 3, 2, padding=1)

    def forward(self, ids, pixels=None, sound=None, cut=None):
        hidden = self.embed(ids)
        if sound is not None:
            heard = self.hear(sound).transpose(1, 2).reshape(-1, 16)
            hidden = hidden.masked_scatter((ids == AUDIO).unsqueeze(-1), heard)
        if self.breaks:
            torch._dynamo.graph_break()
        if pixels is not None:
            seen = self.see(pixels).flatten(2).transpose(1, 2).reshape(-1, 16)
            hidden = hidden.masked_scatter((ids == VIDEO).unsqueeze(-1), seen)
        return self.through_layers(hidden, cut=cut)[0]


def omni_inputs(video=True, audio=True):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(1, 48, (9,), generator=generator)
    seen = torch.full((16 * video,), VIDEO)
    heard = torch.full((12 * audio,), AUDIO)
    inputs = {"ids": torch.cat([text[:3], seen, text[3:5], heard, text[5:]])[None]}
    if video:
        inputs["pixels"] = torch.randn(4, 3, 8, 8, generator=generator)
    if audio:
        inputs["sound"] = torch.randn(1, 5, 24, generator=generator)
    return inputs


def run(model, inputs, **options):
    options = {"inner": "eager", "on_skip": "raise", "selector": "uniform", "retention": 0.25} | options
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        return torch.compile(model, backend="sharp", options=options)(**inputs)


def pruned_reports():
    return [report for report in sharp_compile.reports() if report.pruned]


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("asked, kept", [("visual", (4, 12)), ("audio", (16, 3)), ("all", (4, 3))])
def test_what_is_asked_for_is_pruned(asked, kept, breaks):
    model, inputs = Omni(breaks), omni_inputs()
    actual = run(model, inputs, modality=asked)
    (report,) = pruned_reports()
    ids = inputs["ids"][0, report.kept[0]]
    assert asked == "all" or (int((ids == VIDEO).sum()), int((ids == AUDIO).sum())) == kept
    assert len(ids) == 9 + sum(kept)
    with torch.no_grad():
        assert_close(actual, model(**inputs, cut={1: report.kept}), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("asked, video, audio", [("visual", False, True), ("audio", True, False)])
def test_what_is_not_asked_for_is_kept_and_reported(asked, video, audio):
    model, inputs = Omni(), omni_inputs(video, audio)
    actual = run(model, inputs, modality=asked)
    assert not pruned_reports()
    assert any("keeps as text is" in report.reason for report in sharp_compile.reports())
    with torch.no_grad():
        assert_close(actual, model(**inputs))


def test_where_it_can_not_be_told_it_is_declined(monkeypatch):
    monkeypatch.setattr("sharp_compile.backend.single_graph.modality_of", lambda features: None)
    monkeypatch.setattr("sharp_compile.backend.single_graph.kind_of_mask", lambda mask: "unknown")
    with pytest.raises(CannotPrune, match="nothing shows which of them are injected here"):
        run(Omni(), omni_inputs())
    torch._dynamo.reset()
    run(Omni(), omni_inputs(), modality="all")
    assert pruned_reports()


@pytest.mark.parametrize(
    "tower, shape, expected",
    [
        (nn.Conv1d(4, 8, 3), (1, 4, 20), "audio"),
        (nn.Conv2d(3, 8, 4, 4), (2, 3, 8, 8), "visual"),
        (nn.Conv3d(3, 8, 2, 2), (2, 3, 2, 8, 8), "visual"),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Conv1d(8, 8, 1)), (2, 3, 8, 8), "visual"),
        (nn.Conv2d(1, 8, 4, 4), (2, 1, 8, 8), None),
        (nn.Linear(8, 8), (20, 8), None),
    ],
)
def test_what_features_are_computed_from_tells(tower, shape, expected):
    found = []

    def record(module, inputs):
        found.append(modality.modality_of(module.graph.output_node().args[0][0]))
        return module.forward

    torch.compile(tower, backend=record)(torch.randn(shape))
    assert found == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("video", [True, False])
def test_the_ids_of_a_model_of_transformers_tell(video):
    """Its towers are in graphs of their own."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": 640, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64}
    audio = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "d_model": 32, "output_dim": 64}
    config = Qwen2_5OmniThinkerConfig(
        vision_config=vision | {"intermediate_size": 64, "window_size": 16, "fullatt_block_indexes": [1]},
        audio_config=audio | {"encoder_ffn_dim": 32, "max_source_positions": 16, "n_window": 4},
        text_config=text | {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope},
        **{"audio_token_index": 604, "image_token_index": 600, "video_token_index": 601},
        **{"audio_start_token_id": 605, "audio_end_token_id": 606},
        **{"vision_start_token_id": 602, "vision_end_token_id": 603},
    )
    torch.manual_seed(0)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    seen = [602, *[601] * 16, 603] if video else []
    ids = torch.tensor([[11, 12, 13, *seen, 14, 605, *[604] * 40, 606, 15, 16, 17]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": torch.randn(1, 16, 160),
        "feature_attention_mask": torch.ones(1, 160, dtype=torch.long),
    }
    if video:
        inputs["pixel_values_videos"] = torch.randn(64, 96)
        inputs["video_grid_thw"] = torch.tensor([[4, 4, 4]])
        inputs["video_second_per_grid"] = torch.tensor([1.0])
    model.compile(backend="sharp", options={"inner": "eager", "selector": "uniform", "retention": 0.25})
    with torch.no_grad():
        model(**inputs)
    kept = [ids[0, report.kept[0]] for report in pruned_reports()]
    assert [(int((each == 601).sum()), int((each == 604).sum())) for each in kept] == ([(4, 40)] if video else [])
