"""What the README and the pages say that code or CI says as well: the two must not drift apart."""

import ast
import re
from pathlib import Path

from sharp_compile.options import DEFAULTS

ROOT = Path(__file__).parent.parent


def commands(path):
    """The lines of a file that begin with making a virtual environment, in order."""
    lines = (line.strip() for line in (ROOT / path).read_text().splitlines())
    return [line for line in lines if line.startswith("python3 -m venv")]


def test_ci_runs_the_two_commands_of_the_readme_to_the_letter():
    demo, tests = commands("README.md")
    assert demo.endswith("sharp-compile demo")
    assert tests.endswith("pytest -n 2 --dist worksteal")
    assert commands(".ci/run") == [demo, tests]


def test_the_options_table_has_every_option_with_its_default():
    page = (ROOT / "docs" / "options.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", page, re.MULTILINE)
    assert {name: ast.literal_eval(default) for name, default in rows} == DEFAULTS


def test_the_way_of_a_graph_names_the_files_that_there_are():
    block = (ROOT / "docs" / "how-it-works.md").read_text().split("\n## The way of a graph\n")[1].split("```")[1]
    named = set(re.findall(r"\w+\.py", block))
    ours = {path.name for folder in ("sharp_compile", "passes") for path in (ROOT / folder).rglob("*.py")}
    assert named <= ours
    on_the_way = [ROOT / "sharp_compile" / "backend", *(ROOT / "passes").glob("[!f]*/")]
    files = {path.name for folder in on_the_way for path in folder.glob("*.py")} - {"__init__.py"}
    assert files <= named


def test_the_readme_is_read_aloud_in_two_minutes():
    """At 150 words a minute, without what nobody reads aloud: code, tables, addresses."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    text = re.sub(r"^\|.*$|^!\[.*$|\]\([^)]*\)", "", text, flags=re.MULTILINE)
    assert len(re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)) <= 320


def test_the_navigation_has_at_most_seven_entries():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    assert len(re.findall(r"^  - ", navigation, re.MULTILINE)) <= 7
