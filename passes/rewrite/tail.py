"""Rewrites a graph that reads the hidden states of a pruned one: see ``backend.tail_graph``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from ..canonicalize.functionalize import make_functional
from ..errors import CannotPrune
from ..fx.emit import Emitter
from ..fx.nodes import arguments, call_target, example_value, fake_like, flatten_args, format_node, unflatten_args
from ..fx.sizes import hint
from ..token_dim.plan import Expand, NodePlan, Plans, Returned
from ..token_dim.solver import probe
from .shrink import Shrinker, expand_tokens


@dataclass(frozen=True)
class Tail:
    """What was done to such a graph, whose module takes two inputs more.

    These are the kept positions ``[B, S']`` and a tensor of size S. ``returned`` are its shortened results.
    """

    returned: tuple[Returned, ...]


def follow_full(module: GraphModule, place: int) -> Tail | None:
    """Have a graph run on the kept tokens whose input ``place`` is hidden states that were expanded to the full length.

    Args:
        module: a copy of Dynamo's; it is rewritten in place, unless the result is None or an error is raised.
        place: which input.

    Returns:
        What was done; None where nothing can be run on fewer tokens.

    Raises:
        CannotPrune: where it can't be proven right with fewer tokens.
    """
    states = module.graph.find_nodes(op="placeholder")[place]
    make_functional(module.graph, states)
    plans = probe(module.graph, states, [states], tail=set(module.graph.nodes))
    if all(plan.stage == 0 for plan in plans.values()):
        return None
    kept, _ = _add_inputs(module)
    emit = Emitter(module, trace=False)
    shrinker = Shrinker(emit, plans, states, [states])
    shrinker.expanded |= {(states, Expand(1, 1, batch_axis)): states for batch_axis in (0, None)}
    with emit.before(shrinker.insertion_point()):
        length = emit.size(kept, 1)
    shrinker.begin_stage(kept, length)
    shrinker.finish()
    return _finished(module, plans)


def follow_short(module: GraphModule, place: int) -> Tail | None:
    """Do the same for a graph that was traced on hidden states that are short.

    It runs as it was traced, but for what takes tokens at positions of the whole sequence.
    """
    states = module.graph.find_nodes(op="placeholder")[place]
    plans = probe(module.graph, states, [states], tail=set(module.graph.nodes))
    kept, whole = _add_inputs(module)
    emit = Emitter(module, trace=False)
    for node, plan in plans.items():
        if plan.stage > 0:
            continue
        _check_any_length(node, plan)
        with emit.before(node):
            length = emit.size(whole, 0)
            leaves = [
                emit(expand_tokens, leaf, kept, length, rewrite.axis, rewrite.batch_axis)
                if isinstance(rewrite, Expand)
                else leaf
                for leaf, rewrite in zip(flatten_args(node), plan.rewrites, strict=True)
            ]
        node.args, node.kwargs = unflatten_args(node, leaves)
    return _finished(module, plans)


def _check_any_length(node: Node, plan: NodePlan) -> None:
    """Decline a node whose result, as it was traced, depends on how many tokens it reads."""
    with FakeTensorMode() as mode:
        values = [
            fake_like(value, mode) if isinstance(value := example_value(leaf), Tensor) else hint(value)
            for leaf in flatten_args(node)
        ]
        longer = [
            value.repeat_interleave(2, rewrite.axis) if isinstance(rewrite, Expand) else value
            for value, rewrite in zip(values, plan.rewrites, strict=True)
        ]
        shapes = [call_target(node, *unflatten_args(node, each)).shape for each in (values, longer)]
    if shapes[0] != shapes[1]:
        raise CannotPrune(f"{format_node(node)} takes tokens at positions of the hidden states, which were shortened")


def _add_inputs(module: GraphModule) -> tuple[Node, Node]:
    last = module.graph.find_nodes(op="placeholder")[-1]
    with module.graph.inserting_after(last):
        whole = module.graph.placeholder("whole")
        kept = module.graph.placeholder("kept")
    return kept, whole


def _finished(module: GraphModule, plans: Plans) -> Tail:
    results = arguments(module.graph.output_node())[0]
    found = [plans.returned(node, place) for place, node in enumerate(results)]
    module.graph.lint()
    module.recompile()
    return Tail(tuple(each for each in found if each is not None))
