"""Tasks of lmms-eval that are made here: two questions for a tiny random model, some for a trained one."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sharp_compile
from sharp_compile.tools import cli
from sharp_compile.tools.demo.video import read
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.lmms import evaluate, in_percent
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.score import LmmsError, NotPruned, grade, pruned

needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: the extra eval"
)

WORDS = ("what", "is", "in", "the", "video", "?", *(f"word{number}" for number in range(50)))
MARKS = ("<image>", "<video>", "<end>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<{{ part['type'] }}>{% endif %} "
    "{% endfor %}{% endfor %}"
)
SIDE, FRAMES = 32, 8
VISUAL_TOKENS = FRAMES * 4 + 1  # 4 x 4 patches of a frame, pooled; and a newline
PRUNED = {"selector": "uniform", "retention": 0.1, "layer": 0, "inner": "eager"}
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/questions.json}}
  cache_dir: {folder}/cache
test_split: test
output_type: generate_until
doc_to_visual: {visual}
doc_to_text: question
doc_to_target: {target}
generation_kwargs: {{max_new_tokens: {length}}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def save_model(folder):
    """A LLaVA-OneVision of four decoder layers, with its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        PreTrainedTokenizerFast,
    )

    from tests.architectures.base import randomize

    vocabulary = {word: number for number, word in enumerate((*MARKS, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(list(MARKS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[SIDE, SIDE]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlavaOnevisionConfig(
        text_config={
            **sizes,
            "model_type": "qwen2",
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "vocab_size": len(vocabulary),
            "eos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **sizes,
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_index=vocabulary["<image>"],
        video_token_index=vocabulary["<video>"],
        image_grid_pinpoints=[[SIDE, SIDE]],
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    randomize(model, 0)
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = list(range(len(MARKS)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_video(path, seed):
    """Three seconds of noise."""
    noise = np.random.default_rng(seed)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(24):
            picture = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_task(folder, name, visual="video", target="full", length=6):
    task = TASK.format(folder=folder, name=name, visual=visual, target=target, length=length)
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / f"{name}.yaml").write_text(task)


def write_questions(folder, questions):
    (folder / "questions.json").write_text("\n".join(map(json.dumps, questions)))


def answer(folder, question, path, options):
    """What the model says, asked by hand."""
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    if options is not None:
        torch._dynamo.reset()
        sharp_compile.compile(model, **options)
    frames = read(Path(path), FRAMES).frames
    inputs = processor(text=f"<video> {question} ", videos=frames, do_sample_frames=False, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :])


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with `model` and `tasks`, for which what the full or the pruned model says is right."""
    folder = tmp_path_factory.mktemp("bench")
    save_model(folder / "model")
    questions = []
    for number in range(2):
        path, question = folder / f"{number}.mp4", f"what is word{number} in the video ?"
        write_video(path, number)
        with av.open(path) as container:
            next(container.decode(video=0)).to_image().save(path.with_suffix(".png"))
        questions.append(
            {
                "video": str(path),
                "picture": str(path.with_suffix(".png")),
                "elsewhere": "/nowhere.mp4",
                "question": question,
                "full": answer(folder / "model", question, path, None),
                "pruned": answer(folder / "model", question, path, PRUNED),
            }
        )
    assert all(question["full"] != question["pruned"] for question in questions), "what is right has to differ"
    write_questions(folder, questions)
    write_task(folder, "said_by_the_full")
    write_task(folder, "said_by_the_pruned", target="pruned")
    write_task(folder, "on_pictures", visual="picture")
    write_task(folder, "on_nothing", visual="elsewhere")
    text = TASK.partition("generation_kwargs")[0].replace("generate_until", "multiple_choice") + "doc_to_choice: [a, b]"
    text = text.format(folder=folder, name="pick_one", visual="video", target="full")
    (folder / "tasks" / "pick_one.yaml").write_text(text)
    (folder / "tasks" / "group.yaml").write_text("group: both\ntask: [said_by_the_full, said_by_the_pruned]\n")
    return folder


def ask(bench, task="both", options=None, **settings):
    return evaluate(str(bench / "model"), [task], options, include=bench / "tasks", frames=FRAMES, **settings)


def accuracies(rows):
    return {row.task: row.accuracy for row in rows}


@needs_lmms_eval
def test_the_full_model(bench):
    rows = ask(bench)
    assert accuracies(rows) == {"said_by_the_full": 100, "said_by_the_pruned": 0, "both": 50}
    assert {(row.selector, row.retention, row.layer) for row in rows} == {("none", 1.0, None)}
    assert [(row.metric, row.n, row.reported) for row in rows] == [
        ("exact_match", 2, 1.0),
        ("exact_match", 2, 0.0),
        ("exact_match", 4, 0.5),
    ]
    assert sharp_compile.reports() == []


@needs_lmms_eval
def test_the_pruned_model(bench):
    rows = ask(bench, options=PRUNED)
    assert accuracies(rows) == {"said_by_the_full": 0, "said_by_the_pruned": 100, "both": 50}
    assert {(row.selector, row.retention, row.layer) for row in rows} == {("uniform", 0.1, 0)}
    kept = [report.kept for report in sharp_compile.reports() if report.pruned]
    assert kept and all((positions < VISUAL_TOKENS).sum() == 4 for positions in kept)


@needs_lmms_eval
def test_a_retention_of_1_answers_as_the_full_model(bench):
    assert accuracies(ask(bench, options={"retention": 1.0, "inner": "eager"}))["said_by_the_full"] == 100


@needs_lmms_eval
def test_pictures_are_pruned_too(bench):
    (row,) = ask(bench, "on_pictures", PRUNED, limit=1)
    assert row.n == 1
    assert any(report.pruned for report in sharp_compile.reports())


@needs_lmms_eval
@pytest.mark.parametrize("on_skip", ["silent", "warn"])
@pytest.mark.filterwarnings("ignore:sharp_compile runs a graph unpruned")
def test_a_model_that_is_not_pruned_is_no_result(bench, on_skip):
    with pytest.raises(NotPruned, match=r"said_by_the_full, question 0: the model ran unpruned: .*layer"):
        ask(bench, "said_by_the_full", {**PRUNED, "layer": 99, "on_skip": on_skip})


@needs_lmms_eval
@pytest.mark.parametrize("options", [None, {"retention": 0.1, "layer": 1, "inner": "eager"}])
def test_a_trained_model_is_graded_as_by_its_own_exam(tmp_path, options):
    exam = hold_out("sparse", 11, 3)
    questions = []
    for number, (frames, question) in enumerate(zip(exam.frames, exam.questions, strict=True)):
        path = tmp_path / f"{number}.mkv"
        with av.open(path, "w") as container:
            stream = container.add_stream("ffv1", rate=8)  # without loss
            stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr0"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        questions.append({"video": str(path), "question": " ".join(question.words), "full": question.answer})
    write_questions(tmp_path, questions)
    write_task(tmp_path, "exam", length=2)
    folder = MODELS / "seed-1"
    (row,) = evaluate(str(folder), ["exam"], options, include=tmp_path / "tasks", frames=16)
    model, tokenizer = load(folder)
    own = grade(model if options is None else pruned(model, **options), tokenizer, exam, options is not None)
    assert row.accuracy == pytest.approx(100 * own.right.mean())
    assert options is not None or row.accuracy > 90


@needs_lmms_eval
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("said_by_the_ful", "said_by_the_ful: .* the nearest known name is 'said_by_the_full'"),
        ("on_nothing", "on_nothing, question 0: .*/nowhere.mp4: there is no such file"),
        ("pick_one", "pick_one: only tasks whose answers are generated are served"),
    ],
)
def test_what_can_not_be_asked(bench, task, message):
    with pytest.raises(LmmsError, match=message):
        ask(bench, task)


@needs_lmms_eval
def test_the_command(bench, tmp_path):
    numbers = tmp_path / "numbers.json"
    arguments = [
        *("eval", "--model", bench / "model", "--task", "said_by_the_pruned", "--include", bench / "tasks"),
        *("--selector", "uniform", "--retention", 0.1, "--layer", 0, "--frames", FRAMES, "--inner", "eager"),
        *("--json", numbers),
    ]
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    rows = json.loads(numbers.read_text())["rows"]
    assert [(row["selector"], row["accuracy"], row["share_of_full"]) for row in rows[:2]] == [
        ("none", 0, None),
        ("uniform", 100, None),
    ]
    assert rows[2]["selector"] == "random"
    assert "said_by_the_pruned" in result.output and "100.0" in result.output


@needs_lmms_eval
def test_a_folder_of_tasks_that_is_not_there(bench):
    with pytest.raises(LmmsError, match="nowhere: there is no such folder"):
        evaluate(str(bench / "model"), ["both"], include=bench / "nowhere")


@needs_lmms_eval
def test_a_model_that_is_not_there(bench):
    with pytest.raises(LmmsError, match="nowhere: there is no such folder, and no such checkpoint"):
        evaluate(str(bench / "nowhere"), ["both"], include=bench / "tasks")


@needs_lmms_eval
def test_code_that_comes_with_a_checkpoint_is_not_run(bench, tmp_path):
    shutil.copytree(bench / "model", tmp_path, dirs_exist_ok=True)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import PretrainedConfig as Config")
    config = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LmmsError, match="no checkpoint of a video model"):
        evaluate(str(tmp_path), ["both"], include=bench / "tasks")
    assert not ran.exists()


@needs_lmms_eval
def test_weights_that_are_pickled_are_not_loaded(bench, tmp_path):
    shutil.copytree(bench / "model", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(LmmsError, match=r"no checkpoint of a video model .*model\.safetensors"):
        evaluate(str(tmp_path), ["both"], include=bench / "tasks")


def test_a_bad_option_is_refused_first():
    with pytest.raises(ValueError, match="'sharp'"):
        evaluate("nowhere", ["nothing"], {"selector": "shrap"})


def test_without_lmms_eval_the_error_tells_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(LmmsError, match=r"pip install 'sharp-compile\[eval\]'"):
        evaluate("nowhere", ["nothing"])


@pytest.mark.parametrize(
    ("value", "scores", "percent"),
    [
        (0.5, [1, 0], 50),  # a share
        (50, [1, 0], 50),
        (1, [1, 1], 100),
        (0.4, [0] * 249 + [1], 0.4),  # one of 250, in percent
        (0.004, [0] * 249 + [1], 0.4),
        (0, [0, 0], 0),
        (62.5, [], 62.5),
        (0.625, [], 62.5),
        (3.5, [3, 4], 3.5),  # points
    ],
)
def test_metrics_are_told_in_percent(value, scores, percent):
    assert in_percent(value, scores) == pytest.approx(percent)


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0}, {"max_new_tokens": 16, "do_sample": False}),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"until": ["\n\n"], "num_beams": 3}, {"num_beams": 3, "do_sample": False, "top_p": None}),
    ],
)
@needs_lmms_eval
def test_answers_are_greedy_unless_a_temperature_is_set(task, model):
    from sharp_compile.tools.evaluation.lmms_model import generation_settings

    made = generation_settings(task)
    assert made == made | model and "until" not in made
