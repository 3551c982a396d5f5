"""The documentation: every block of code runs, every command is one, every reason has its remedy."""

import ast
import functools
import http.server
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
import torch
import typer.main
from markdown_it import MarkdownIt
from torch._dynamo.backends.registry import lookup_backend

import sharp_compile
from sharp_compile.backend import inner
from sharp_compile.tools import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# These are run apart: `tests/test_extending.py`.
EXTENDING = [*(ROOT / "docs" / "extending").glob("*.md")]


def blocks(page, language):
    """The code of a page in one language, each with the number of its first line."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [(token.content, token.map[0] + 1) for token in tokens if token.type == "fence" and token.info == language]


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with `my-model`, of moderate size and random weights, and `video.mp4`."""
    from sharp_compile.tools.demo import models
    from sharp_compile.tools.demo.run import CLIP

    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.DECODER, "num_hidden_layers", 4)
        model, processor = next(models.built_in()).load()
    model.save_pretrained(folder / "my-model")
    processor.save_pretrained(folder / "my-model")
    shutil.copy(CLIP, folder / "video.mp4")
    return folder


@pytest.fixture
def namespace(checkpoint):
    """What the pages speak of without making it: a model, its processor, a video, a prompt and inputs."""
    import numpy
    from transformers import AutoProcessor

    from sharp_compile.tools.demo import models
    from sharp_compile.tools.demo.video import read

    clip = read(checkpoint / "video.mp4", 2)
    case = models.prepare(models.local(checkpoint / "my-model"), clip)
    processor = AutoProcessor.from_pretrained(checkpoint / "my-model")
    case.model.compile(backend="sharp")
    content = [{"type": "video"}, {"type": "text", "text": "What happens here?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return {
        "model": case.model,
        "inputs": case.inputs,
        "processor": processor,
        "video": clip.frames,
        "prompt": prompt,
        "numpy": numpy,
        "torch": torch,
        "sharp_compile": sharp_compile,
    }


def eagerly(inner):
    """`lookup_backend`, without Inductor."""
    return lookup_backend("eager" if inner == "inductor" else inner)


@pytest.mark.torchvision
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python") and page.parent != EXTENDING], ids=name_of
)
def test_every_block_of_python_runs(page, namespace, checkpoint, tmp_path, monkeypatch):
    """One after the other, as a reader would; what Inductor would compile runs eagerly, the demo shows that it can."""
    monkeypatch.setattr(inner, "lookup_backend", eagerly)
    for name in ("my-model", "video.mp4"):
        (tmp_path / name).symlink_to(checkpoint / name)
    monkeypatch.chdir(tmp_path)
    for code, line in blocks(page, "python"):
        exec(compile("\n" * line + code, page, "exec"), namespace)


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="a torchvision for CUDA may be beside a torch without"
)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "py")], ids=name_of)
def test_every_block_for_ranks_runs(page, tmp_path):
    """Blocks of `py` are for `torchrun`."""
    pytest.importorskip("accelerate", reason="transformers loads shards with it")
    from tests.architectures import shared_model  # transformers' models, which need that torchvision to be right

    shared_model("llava_onevision", layers=2).save_pretrained(tmp_path / "my-model")
    for code, _ in blocks(page, "py"):
        (tmp_path / "script.py").write_text(code)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run([*launch, "script.py"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]


def commands(page):
    """Our own commands on a page, each with the number of its block's first line."""
    for code, line in blocks(page, "sh"):
        for command in re.split(r"\n|&&|;", code.replace("\\\n", " ")):
            if command.strip().startswith("sharp-compile"):
                yield command.strip(), line


@pytest.mark.parametrize(("command", "page", "line"), [(c, name_of(p), n) for p in PAGES for c, n in commands(p)])
def test_every_command_is_one(command, page, line):
    """It is parsed by the command line itself: its options are there, and their values are of the right kind."""
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(cli.app)
    subcommand = group.commands[name]
    try:
        subcommand.make_context(name, arguments)
    except click.UsageError as error:
        pytest.fail(f"{page}:{line}: {error.format_message()}")


# What makes a command that takes minutes take seconds, in the same way.
SHORTER = {"demo": ["--repeats", "1", "--frames", "2"], "eval": ["--questions", "2"]}


def local_commands():
    """The commands that need no hub; those that take more than seconds are slow."""
    for page in PAGES:
        for command, line in commands(page):
            if "Qwen/" not in command:
                marks = [] if command == "sharp-compile explain" else [pytest.mark.slow]
                yield pytest.param(command, id=f"{name_of(page)}:{line} {command}", marks=marks)


@pytest.mark.torchvision
@pytest.mark.parametrize("command", [*local_commands()])
def test_every_command_runs(command, checkpoint, tmp_path):
    """As a reader types it, one after the other, beside a model and a video of their own."""
    for name in ("my-model", "video.mp4"):
        (tmp_path / name).symlink_to(checkpoint / name)
    (tmp_path / "docs").mkdir()
    _, name, *arguments = shlex.split(command)
    line = [sys.executable, "-m", "sharp_compile", name, *arguments, *SHORTER.get(name, [])]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr[-4000:]


def examples(page):
    """The examples that a page runs, with the options that it gives them."""
    for code, line in blocks(page, "sh"):
        for command in re.findall(r"python (examples/\S+\.py)(.*)", code.replace("\\\n", " ")):
            yield *command, f"{name_of(page)}:{line}"


@pytest.mark.parametrize(("script", "arguments", "place"), [each for page in PAGES for each in examples(page)])
def test_every_example_is_there_and_has_its_options(script, arguments, place, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert exit_.value.code == 0
    known = capsys.readouterr().out
    for option in re.findall(r"--[\w-]+", arguments):
        assert option in known, f"{place}: {script} has no {option}"


def test_inline_commands_are_known():
    known = typer.main.get_command(cli.app).commands
    for page in PAGES:
        for name in re.findall(r"`sharp-compile (\w+)", page.read_text(encoding="utf-8")):
            assert name in known, f"{name_of(page)}: sharp-compile {name}"


def reasons():
    """The literal parts of every reason in the code, with its place; those that only hand a reason on have none."""
    for path in [*(ROOT / "passes").rglob("*.py"), *(ROOT / "sharp_compile" / "backend").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            is_raised = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "CannotPrune"
            is_set = isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", "") == "reason"
            if is_raised or is_set:
                value = node.args[0] if is_raised else node.value
                parts = [part.value for part in ast.walk(value) if isinstance(part, ast.Constant)]
                if parts := [part for part in parts if isinstance(part, str) and len(part) > 12]:
                    yield pytest.param(parts, id=f"{path.name}:{node.lineno}")


OF_PRUNED_GRAPHS = ("visual features are injected in this graph, a later", "an earlier graph injected visual features")


@pytest.mark.parametrize("parts", [*reasons()])
def test_every_reason_has_its_remedy(parts):
    lines = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    quoted = [quote for line in lines if line.startswith('| "') for quote in line.split(" | ")[0].split('"')[1::2]]
    if not any(part.startswith(OF_PRUNED_GRAPHS) for part in parts):
        said = " ".join(parts)
        assert any(quote in said for quote in quoted), f"docs/troubleshooting.md has no row for: {said}"


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
    assert sorted(navigation) == sorted(map(str, pages))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs_material" if importlib.util.find_spec("mkdocs_material") else "material")
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def test_the_site_builds_and_needs_no_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 2
    for page in pages:
        fetched = re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert not fetched, f"{page.name} fetches {fetched}"
    assert "sharp_compile.explain" in (site / "api.html").read_text()


def test_the_site_is_searched_without_a_network(site):
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server, playwright.sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"]).new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        here = f"http://localhost:{server.server_port}"
        page.goto(f"{here}/index.html")
        page.keyboard.press("/")
        page.keyboard.type("FlashAttention")
        page.wait_for_selector(".md-search-result__item")
        assert "When does it not help?" in page.inner_text(".md-search-result__list")
        assert all(url.startswith((here, "data:", "blob:")) for url in asked)
        server.shutdown()
