"""The scripts in `examples/` are on their page, can be started, and show what they say."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def shown(capsys):
    """Runs a script in this process; returns what it prints."""

    def run(script, *arguments):
        spec = importlib.util.spec_from_file_location(script, ROOT / "examples" / f"{script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(list(arguments))
        return capsys.readouterr().out

    return run


def test_the_page_has_every_script():
    listed = re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "docs" / "examples.md").read_text(), re.MULTILINE)
    assert sorted(listed) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_tells_its_arguments(script, monkeypatch, capsys):
    path = str(ROOT / "examples" / script)
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    assert not ended.value.code
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.slow
def test_the_graphs_are_drawn(tmp_path):
    script = ROOT / "examples" / "draw_graphs.py"
    subprocess.run([sys.executable, script, tmp_path / "graphs.png"], check=True, capture_output=True)
    assert (tmp_path / "graphs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.torchvision
def test_a_pipeline_answers_right(shown):
    text = shown("answer_with_pipeline")
    answers = re.findall(r"\? (\S+) \(right: (\S+)\)", text)
    assert len(answers) == 3 and all(said == right for said, right in answers)
    assert "262 -> 31 tokens after layer 1" in text


@pytest.mark.torchvision
def test_all_parts_of_a_prompt_share_what_is_kept(shown):
    text = shown("mix_videos_and_images", "--retention", "0.25")
    counts = {name: (int(kept), int(all_)) for name, kept, all_ in re.findall(r"(.*): (\d+) of (\d+) tokens", text)}
    assert list(counts) == ["text", "video", "image", "another video"]
    kept, there = counts.pop("text")
    assert kept == there
    assert sum(kept for kept, _ in counts.values()) == -(-sum(there for _, there in counts.values()) // 4)


def test_a_chat_goes_on_on_a_short_cache(shown):
    full, pruned = shown("chat_about_video").split("pruned model")
    lengths = [[int(number) for number in line.split(", ")] for line in re.findall(r"\[(.*)\]", pruned)]
    assert lengths == [[262 + more] * 2 + [31 + more] * 4 for more in (0, 5, 10)]
    assert re.findall(r"\[(.*)\]", full) == [", ".join([str(262 + more)] * 6) for more in (0, 5, 10)]
    first = r"color of cross \? (\S+)"
    assert re.search(first, full).group(1) == re.search(first, pruned).group(1) == "green"


@pytest.mark.slow
def test_an_adapter_learns_while_tokens_are_dropped(shown):
    pytest.importorskip("peft")
    text = shown("finetune_adapter", "--steps", "6")
    losses = [float(loss) for loss in re.findall(r"loss (\S+),", text)]
    assert losses[-1] < 0.8 * losses[0]
    assert "gradients in 36 of 36 adapter matrices" in text
    assert "changed: 36 adapter matrices, 0 others" in text
    assert "263 -> 32 tokens after layer 1" in text


@pytest.mark.slow
def test_programs_answer_where_transformers_is_not_loaded(shown):
    text = shown("export_program", "--format", "export", "--questions", "2")
    assert "loaded of transformers and sharp_compile: neither" in text
    answers = re.findall(r"program: (\S+), compiled: (\S+), right: (\S+); the same tokens", text)
    assert len(answers) == 2 and all(len(set(each)) == 1 for each in answers)


def test_a_quantised_model_answers_pruned(shown):
    pytest.importorskip("torchao")
    text = shown("quantise_and_prune", "--questions", "4", "--inner", "eager")
    before, after = map(float, re.findall(r"(\S+) MB", text))
    assert after < before / 2
    assert "the same answer to 4 of 4 questions" in text


@pytest.mark.slow
def test_a_rule_of_ones_own_is_compared(shown):
    text = shown("write_selector", "--questions", "10", "--world", "sparse")
    shares = {name: int(share) for name, share in re.findall(r"^(\w+) +(\d+)%", text, re.MULTILINE)}
    assert list(shares) == ["motion", "sharp", "random"]
    assert shares["sharp"] > shares["random"]
