"""What the passes do, for those who watch, by the means that PyTorch has for its own.

* logging at DEBUG, by the module that does it: ``TORCH_LOGS="+sharp_compile"``;
* artifacts in the trace that ``tlparse`` shows: ``TORCH_TRACE=folder``;
* counters: ``torch._dynamo.utils.counters["sharp_compile"]``.

A graph is printed only where one of them is on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch._dynamo.utils import counters
from torch._logging import trace_structured
from torch.fx import Graph, GraphModule

NAME = "sharp_compile"


def count(event: str) -> None:
    """Count an event in PyTorch's counters."""
    counters[NAME][event] += 1


def artifact(name: str, text: Callable[[], str]) -> None:
    """Add a text to the trace that ``tlparse`` shows, if there is one.

    Args:
        name: of the artifact, after ``sharp_compile_``.
        text: makes the text.
    """
    trace_structured("artifact", metadata_fn=lambda: {"name": f"{NAME}_{name}", "encoding": "string"}, payload_fn=text)


@contextmanager
def phase(name: str, module: GraphModule, log: logging.Logger) -> Iterator[None]:
    """Tell how long a phase of the pipeline took, and which operators the graph has more or less after it.

    Args:
        name: of the phase.
        module: what it reads and rewrites.
        log: the logger of the module that runs it.
    """
    is_told, began = log.isEnabledFor(logging.DEBUG), time.perf_counter()
    before = operators(module.graph) if is_told else Counter[str]()
    yield
    milliseconds = 1000 * (time.perf_counter() - began)
    if is_told:
        log.debug("%s: %.1f ms, %s", name, milliseconds, difference(before, operators(module.graph)))
    artifact(f"after_{name}", lambda: readable(module))


def operators(graph: Graph) -> Counter[str]:
    """Return how many nodes of a graph call each operator."""
    calls = (node.target for node in graph.nodes if node.op in ("call_function", "call_method"))
    return Counter(target if isinstance(target, str) else getattr(target, "__name__", str(target)) for target in calls)


def difference(before: Counter[str], after: Counter[str]) -> str:
    """Return the operators that came and went, as ``+2 gather, -1 expand``; "the same operators" where none did."""
    changes = {name: after[name] - before[name] for name in sorted(before | after)}
    return ", ".join(f"{change:+d} {name}" for name, change in changes.items() if change) or "the same operators"


def readable(module: GraphModule) -> str:
    """Return a graph as code, with the shapes of its nodes."""
    return module.print_readable(print_output=False)
