"""The floors of the code: each reads those below it, and none above.

    kernels < selectors < passes < backend < api < tools

Imports inside of functions count too; those of `TYPE_CHECKING` do not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parent.parent
FOLDERS = {"sharp_compile.kernels": "kernels", "sharp_compile.passes": "passes", "sharp_compile": "sharp_compile"}
# What the user asked for, and how it is shown to people what is done: all floors may read these.
DATA = {
    "options",
    "sharp_options",
    "calibration",
    "short_repr",
    "requirements",
    "observability",
    "patches",
    "selector_registry",
}
API = {"api", "explanation", "moved_modules", ""}
FLOORS = ["data", "kernels", "selectors", "passes", "backend", "api", "tools"]
# `Explanation.to_html` is a door to a tool, which is loaded when it is opened.
DOORS = {("sharp_compile.explanation", "sharp_compile.tools.html_report.write")}


def floor(module: str) -> int:
    part = module.split(".")[1] if "." in module else ""
    if part in DATA or module == "sharp_compile.passes.errors":
        return FLOORS.index("data")
    if part in ("kernels", "selectors", "passes"):
        return FLOORS.index(part)
    return FLOORS.index("api" if part in API else "tools" if part in ("tools", "__main__") else "backend")


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []))


def imports() -> nx.DiGraph:
    """Who imports whom, of our own modules."""
    known, graph = modules(), nx.DiGraph()
    for name, path in known.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in statements(ast.parse(path.read_text()).body):
            if isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                targets = [each if (each := f"{source}.{alias.name}") in known else source for alias in node.names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            graph.add_edges_from((name, target) for target in targets if target in known)
    return graph


def test_imports_run_downwards():
    graph = imports()
    assert len(graph) > 100
    upwards = {(one, other) for one, other in graph.edges if floor(one) < floor(other)}
    assert upwards == DOORS


def test_no_floor_has_a_circle():
    circles = [part for part in nx.strongly_connected_components(imports()) if len(part) > 1]
    assert circles == []


def test_the_compiler_loads_no_tool():
    """What draws tables and pages is loaded by the command that does."""
    heavy = ("rich", "jinja2", "typer", "matplotlib", "PIL", "av", "torchvision")
    code = f"import sys, sharp_compile, sharp_compile.backend; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node


def test_functions_fit_a_screen():
    long = {name for name, node in functions() if (node.end_lineno or 0) - node.lineno >= 60}
    assert long == set()


def takes_what_it_must(name: str, node: ast.FunctionDef) -> bool:
    """A Triton kernel takes each stride by itself, an operator its tensors, a subcommand its options."""
    kernels = ("triton.jit", "torch.library.custom_op")
    written = [ast.unparse(each) for each in node.decorator_list]
    is_kernel = any(each.startswith(kernels) or each.endswith(".register_fake") for each in written)
    return is_kernel or name.rpartition(".")[0] == f"sharp_compile.tools.cli.{node.name}"


def test_functions_take_few_arguments():
    given = {
        name: [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        for name, node in functions()
        if not takes_what_it_must(name, node)
    }
    many = {name for name, arguments in given.items() if len([each for each in arguments if each != "self"]) > 7}
    # What an operator of torch takes.
    assert many == {"sharp_compile.passes.canonicalize.flex_to_sdpa._with_closures"}
