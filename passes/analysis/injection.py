"""Finds where a graph puts visual features among the text embeddings.

Two facts are needed for pruning: which positions are visual, and, as a shape, how many there are. They are read from
these forms, in which ``features`` are data that don't descend from the embeddings:

* ``embeddings.masked_scatter(mask, features)``, in place or not;
* ``embeddings[mask] = features`` of ``[V, C]`` by a mask ``[B, S]``, which is ``index_put``;
* ``where(mask, spread, embeddings)`` and sums ``embeddings + spread`` of two masked parts, where ``spread`` holds the
  features in order at the places of the mask: put into zeros, or taken by ``mask.cumsum - 1``;
* ``cat([text, features, text], 1)`` of parts ``[B, n, C]``;
* ``embeddings[:, a:b] = features`` of ``[B, b - a, C]``.

``canonicalize.functionalize`` gives writes a node of their own before. What is mixed in otherwise is found by
``find_unknown``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import SymInt, Tensor
from torch.fx import Graph, Node

from ..errors import CannotPrune
from ..fx.emit import Emitter
from ..fx.nodes import (
    ancestors,
    arguments,
    example_tensor,
    example_value,
    format_node,
    is_hidden_states,
    writes_into_first,
)
from ..fx.sizes import expression
from .attention import find_attention
from .origins import Origins, is_data, projected_from

_MASKED_SCATTER = {torch.masked_scatter, "masked_scatter", torch.ops.aten.masked_scatter.default}
_INDEX_PUT = {torch.index_put, "index_put", torch.ops.aten.index_put.default}
_CAT = {torch.cat, torch.concat, torch.concatenate}
_ADD = {torch.add, operator.add, "add"}
_MUL = {torch.mul, operator.mul, "mul"}
_INVERT = {torch.logical_not, torch.bitwise_not, operator.invert, "logical_not", "bitwise_not"}

# Features that are put among zeros, to be added to something later on, are not among embeddings.
_EMPTY = {torch.zeros, torch.zeros_like, "new_zeros"}

# Methods and functions that change no value of a mask or an index, nor the order of its elements.
_SAME_ELEMENTS = {
    *(torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze, torch.clone, torch.broadcast_to),
    *("flatten", "reshape", "view", "unsqueeze", "squeeze", "ravel", "expand", "expand_as", "broadcast_to"),
    *("to", "bool", "int", "long", "float", "half", "bfloat16", "type_as", "contiguous", "clone", "detach"),
}


@dataclass(frozen=True)
class Placed:
    """Features that are put at a place in the sequence, with no mask.

    ``node`` puts them there: a ``cat``, of which they are number ``part``, or a ``slice_scatter``.
    """

    node: Node
    part: int = 0


@dataclass(frozen=True)
class Injection:
    """Visual features among the embeddings.

    ``embeddings`` is the node ``[B, S, C]`` that holds text and visual features, after the last injection.
    ``masks`` are the nodes ``[B, S, 1 or C]`` or ``[B, S]`` that say where, or the place; ``emit_masks`` makes them
    ``[B, S, 1 or C]``. ``features`` are the nodes whose elements, in rows of C, were put there: one each for images
    and videos that come in one prompt. ``frame`` is the node ``[B, S]`` int64 of the frame of each token that an
    earlier graph injected, -1 outside.
    """

    embeddings: Node
    masks: tuple[Node | Placed, ...]
    features: tuple[Node, ...]
    frame: Node | None = None

    def among(self, copies: Mapping[Node, Node]) -> Injection:
        """Return the same injection in a copy of the graph."""
        masks = (
            replace(mask, node=copies[mask.node]) if isinstance(mask, Placed) else copies[mask] for mask in self.masks
        )
        features = (copies[node] for node in self.features)
        frame = None if self.frame is None else copies[self.frame]
        return Injection(copies[self.embeddings], tuple(masks), tuple(features), frame)


@dataclass(frozen=True)
class _Put:
    """Features that a node puts into embeddings."""

    into: Node
    masks: tuple[Node | Placed, ...]
    features: tuple[Node, ...]


def find_injections(graph: Graph, earlier: Injection | None = None) -> list[Injection]:
    """Return all injections into ``[B, S, C]`` tensors, in order; those into the result of another are one with it.

    So are those into embeddings in which an ``earlier`` graph injected features already.
    """
    found = {} if earlier is None else {earlier.embeddings: earlier}
    for node, put in _puts(graph, found):
        before = found.pop(put.into, Injection(put.into, (), ()))
        # By the same mask again it puts other features over those: the tokens are no more than they were.
        injected = dict(zip(before.masks, before.features, strict=True)) | dict(
            zip(put.masks, put.features, strict=True)
        )
        found[node] = Injection(node, tuple(injected), tuple(injected.values()), before.frame)
    return list(found.values())


def injects_into_input(graph: Graph) -> bool:
    """Return whether features are injected into embeddings that come in from outside, and may hold others already."""
    return any(put.into.op == "placeholder" for _, put in _puts(graph, {}))


def is_masked_scatter(node: Node) -> bool:
    """Return whether a node puts elements of one tensor into another, by a mask."""
    return node.target in _MASKED_SCATTER


def emit_masks(emit: Emitter, injection: Injection) -> Injection:
    """The injection with a node ``[B, S, 1 or C]`` for each of its masks; nodes are added where there is none."""
    return replace(injection, masks=tuple(_as_mask(emit, mask, injection.embeddings) for mask in injection.masks))


def find_unknown(graph: Graph) -> str | None:
    """Return a reason, where a decoder reads embeddings into which data are mixed in a form that is not known.

    Only what enters its first layer counts, as its values do: ``None`` where these descend from text embeddings alone,
    or from no text embeddings at all.
    """
    attentions = [each for each in find_attention(graph) if each.causal or each.mask is not None]
    if not attentions:
        return None
    origins, mixed = Origins(graph), []
    for node in (node for attention in attentions for node in projected_from(attention)):
        sizes = _sizes(node)
        if len(sizes) == 3 and sizes[1] != 1 and origins.lookups[node]:
            # A number for each token is no feature of it: a mask, a weight.
            mixed += [node for each in origins.data[node] if _sizes(each) != sizes[:2]][:1]
    # One layer alone may be anything.
    if len(mixed) < 2:
        return None
    before = set(ancestors(mixed[0]))
    mixing = next(
        node
        for node in graph.nodes
        if (node in before or (writes_into_first(node) and origins.written.intersection(before, node.all_input_nodes)))
        and (origins.lookups[node] and origins.data[node] and node not in origins.written)
    )
    if mixing.target in _ADD and not any(_selects(parent) for parent in mixing.all_input_nodes):
        return None  # something is added to every token, such as its position
    return (
        f"data are put among the text embeddings by {format_node(mixing)}, which is no known form of injecting visual "
        "features; use embeddings.masked_scatter(mask, features), or call the model inside "
        "sharp_compile.visual_tokens(is_visual)"
    )


def _selects(node: Node) -> bool:
    """Return whether a node holds something at some positions and not at others, depending on what comes in."""
    node = _root(node)
    if node.target in _MUL:
        factors = [_root(factor) for factor in node.all_input_nodes]
        masks = [factor for factor in factors if factor.op != "placeholder" and _is_mask_of_ids(factor)]
        return bool(masks)
    name = str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))
    return any(part in name for part in ("where", "masked", "index", "scatter"))


def _is_mask_of_ids(node: Node) -> bool:
    """Return whether a mask, or what is computed from one, is meant: neither weights nor features alone."""
    value = example_tensor(node)
    if value is None or value.ndim < 2:
        return False
    before = ancestors(node)
    if any((each.op == "placeholder" and is_data(each)) or each.target is F.embedding for each in before):
        return False
    return any((tensor := example_tensor(each)) is not None and tensor.dtype == torch.bool for each in before)


def _sizes(node: Node) -> list[sympy.Expr]:
    return [expression(size) for size in example_value(node).shape]


def _puts(graph: Graph, found: dict[Node, Injection]) -> Iterator[tuple[Node, _Put]]:
    """Yield the nodes that put features into embeddings; ``found`` are embeddings with features in them already."""
    origins: Origins | None = None
    injected: set[Node] = set(found)
    for node in graph.nodes:
        if not is_hidden_states(node):
            continue
        put = None
        if is_masked_scatter(node):
            into, mask, features = _scatter_arguments(node)
            put = None if into.target in _EMPTY else _Put(into, (mask,), (features,))
        elif node.target in _INDEX_PUT | _CAT | _ADD or _is_where(node) or _is_slice_scatter(node):
            origins = origins or _origins(graph, injected)
            put = _put_otherwise(node, origins, injected)
        if put is None:
            continue
        into = _through(put.into, injected)
        if origins is not None:
            origins.put_into(node, into)
        injected.add(node)
        yield node, replace(put, into=into)


def _origins(graph: Graph, injected: set[Node]) -> Origins:
    """Return the origins in a graph, where features that were injected count for nothing."""
    origins = Origins(graph)
    for node in graph.nodes:
        if node in injected and is_masked_scatter(node):
            origins.put_into(node, _scatter_arguments(node)[0])
    return origins


def _put_otherwise(node: Node, origins: Origins, injected: set[Node]) -> _Put | None:
    if node.target in _CAT:
        return _put_by_cat(node, origins)
    found: tuple[Node, Node | Placed, Node] | None = None
    if node.target in _INDEX_PUT:
        found = _index_put_arguments(node)
    elif _is_slice_scatter(node):
        into, features, _, *_ = arguments(node)
        found = into, Placed(node), features
    elif _is_where(node):
        found = _where_arguments(node)
    elif node.target in _ADD:
        found = _sum_arguments(node)
    if found is None:
        return None
    into, mask, features = found
    base = _through(into, injected)
    if not (base in injected or origins.is_embeddings(into)) or not origins.is_foreign(features, base):
        return None
    return _Put(into, (mask,), (features,)) if _has_channels(features, node) else None


def _put_by_cat(node: Node, origins: Origins) -> _Put | None:
    """Return parts of features between parts of text, and maybe others of weights alone."""
    parts, *rest = arguments(node)
    axis = node.kwargs.get("dim", rest[0] if rest else 0)
    if axis not in (1, -2) or not all(isinstance(part, Node) for part in parts):
        return None
    # Keys are cat to those of a cache, too: of another width than embeddings.
    text = [part for part in parts if origins.is_text(part) and _is_as_wide_as_looked_up(part, origins)]
    if not text:
        # Several slices of one input around something else: embeddings that come in.
        bases = [part.args[0] for part in parts if part.target is operator.getitem]
        twice = [base for base in bases if bases.count(base) > 1 and getattr(base, "op", None) == "placeholder"]
        text = [part for part in parts if part.target is operator.getitem and part.args[0] in twice[:1]]
    others = [part for part in parts if part not in text]
    features = [part for part in others if origins.data[part]]
    if not text or not features:
        return None
    if not all(origins.is_foreign(part, each) for part in features for each in text):
        return None
    if any(origins.lookups[part] for part in others if part not in features):
        return None
    places = tuple(Placed(node, parts.index(part)) for part in features)
    return _Put(text[0], places, tuple(features)) if len(set(features)) == len(features) else None


def _is_as_wide_as_looked_up(node: Node, origins: Origins) -> bool:
    width = expression(example_value(node).shape[-1])
    return any(expression(example_value(lookup).shape[-1]) == width for lookup in origins.lookups[node])


def _scatter_arguments(node: Node) -> tuple[Node, Node, Node]:
    given = dict(zip(("self", "mask", "source"), arguments(node), strict=False)) | node.kwargs
    return given["self"], given["mask"], given["source"]


def _index_put_arguments(node: Node) -> tuple[Node, Node, Node] | None:
    """Return the embeddings, the mask and the features, where the index is one mask of all positions."""
    given = dict(zip(("self", "indices", "values", "accumulate"), arguments(node), strict=False)) | node.kwargs
    indices = given["indices"]
    if len(indices) != 1 or given.get("accumulate", False) or not isinstance(given["values"], Node):
        return None
    mask = example_tensor(indices[0])
    if mask is None or mask.dtype != torch.bool or mask.ndim not in (2, 3):
        return None
    return given["self"], indices[0], given["values"]


def _where_arguments(node: Node) -> tuple[Node, Node, Node] | None:
    condition, one, other = _conditions(node)
    for mask, spread, into in ((condition, one, other), (_inverted(condition), other, one)):
        features = _spread(spread, mask) if mask is not None else None
        if features is not None and isinstance(into, Node) and mask is not None:
            return into, mask, features
    return None


def _sum_arguments(node: Node) -> tuple[Node, Node, Node] | None:
    """The embeddings, the mask and the features of a sum of two parts, the second of which is zero outside the mask."""
    if node.kwargs or len(node.args) != 2 or not all(isinstance(arg, Node) for arg in node.args):
        return None
    for into, part in (arguments(node), arguments(node)[::-1]):
        if example_tensor(into) is None or not is_hidden_states(part):
            continue
        mask: Any = None
        if is_masked_scatter(part):
            mask, spread = _scatter_arguments(part)[1], part
        elif part.target in _INDEX_PUT and (put := _index_put_arguments(part)) is not None:
            mask, spread = put[1], part
        elif part.target in _MUL:
            mask, spread = _masked_product(part)
        elif _is_where(part):
            mask, spread, other = _conditions(part)
            mask = mask if not isinstance(other, Node) and other == 0 else None
        features = _spread(spread, mask) if mask is not None else None
        if features is not None:
            return into, mask, features
    return None


def _spread(node: Any, mask: Node) -> Node | None:
    """The features that `node` ``[B, S, C]`` holds in order at the places of a mask; None where that is not known."""
    if not isinstance(node, Node):
        return None
    if is_masked_scatter(node):
        into, own, features = _scatter_arguments(node)
        return features if into.target in _EMPTY and _is_same(_root(own), _root(mask)) else None
    if node.target in _INDEX_PUT:
        put = _index_put_arguments(node)
        known = put is not None and put[0].target in _EMPTY and _is_same(_root(put[1]), _root(mask))
        return put[2] if put is not None and known else None
    taken = _taken(_root(node))
    if taken is None:
        return None
    features, index = taken
    counted = _counted(index)
    return features if counted is not None and _is_same(_root(counted), _root(mask)) else None


def _taken(node: Node) -> tuple[Node, Node] | None:
    """Return the rows that are taken by an index, and the index: ``features[index]`` and what else does that."""
    value = None
    if node.target is operator.getitem or node.target in {"index_select", torch.index_select}:
        value, index = node.args[0], node.args[-1]
        if node.target is not operator.getitem and node.args[1] != 0:
            return None
    elif node.target in {F.embedding}:
        index, value = arguments(node)[:2]
    if not isinstance(value, Node) or not isinstance(index, Node):
        return None
    rows, places = example_tensor(value), example_tensor(index)
    if rows is None or places is None or rows.ndim != 2 or places.dtype not in (torch.int64, torch.int32):
        return None
    return value, index


def _counted(index: Node) -> Node | None:
    """Return what an index counts: the mask of ``mask.cumsum - 1``, of all rows together, clamped or not."""
    while True:
        index = _root(index)
        name = index.target if isinstance(index.target, str) else getattr(index.target, "__name__", "")
        if name in ("clamp", "clamp_min", "clip", "relu", "masked_fill"):
            index = arguments(index)[0]
        elif name == "sub" and index.args[1] == 1 and isinstance(index.args[0], Node):
            total = _root(index.args[0])
            name = total.target if isinstance(total.target, str) else getattr(total.target, "__name__", "")
            if name != "cumsum":
                return None
            value = example_tensor(total.args[0])
            # Row by row it would count anew, unless there is one row.
            single = value is not None and all(expression(size) == 1 for size in value.shape[:-1])
            return arguments(total)[0] if single else None
        elif name == "mul" and any(example_tensor(each) is not None for each in index.args[1:]):
            index = arguments(index)[0]
        else:
            return None


def _masked_product(node: Node) -> tuple[Node, Node] | tuple[None, None]:
    """Return the mask and the rest of a product with a mask."""
    for mask, rest in (arguments(node), arguments(node)[::-1]):
        if isinstance(mask, Node) and isinstance(rest, Node):
            value = example_tensor(_root(mask))
            if value is not None and value.dtype == torch.bool:
                return mask, rest
    return None, None


def _conditions(node: Node) -> tuple[Node, Any, Any]:
    """Return the condition of a ``format_node``, and what it chooses from."""
    names = ("self", "condition", "other") if node.op == "call_method" else ("condition", "input", "other")
    given = dict(zip(names, arguments(node), strict=False)) | node.kwargs
    return given["condition"], given.get("self", given.get("input")), given["other"]


def _is_where(node: Node) -> bool:
    return node.target in {torch.where, "where"} and len(node.args) + len(node.kwargs) == 3


def _is_slice_scatter(node: Node) -> bool:
    return node.target is torch.ops.aten.slice_scatter.default


def _inverted(mask: Node) -> Node | None:
    """Return the mask of which this one is the opposite."""
    root = _root(mask)
    return arguments(root)[0] if root.target in _INVERT else None


def _root(node: Node) -> Node:
    """Return where the elements of a node come from, in the same order."""
    while True:
        is_new_axis = (
            node.target is operator.getitem and not isinstance(node.args[1], Node) and _adds_axes(node.args[1])
        )
        if not (node.target in _SAME_ELEMENTS or is_new_axis) or not isinstance(node.args[0], Node):
            return node
        node = node.args[0]


def _adds_axes(index: Any) -> bool:
    """Return whether an index takes all elements, and adds axes at most."""
    indices = index if isinstance(index, tuple) else (index,)
    return all(each is None or each is Ellipsis or each == slice(None) for each in indices)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two nodes are computed alike from the same inputs."""
    if not isinstance(one, Node) or not isinstance(other, Node):
        return type(one) is type(other) and one == other
    if one is other:
        return True
    if one.op != other.op or one.op == "placeholder" or one.target != other.target or one.kwargs or other.kwargs:
        return False
    if len(one.args) != len(other.args):
        return False
    return all(map(_is_same, one.args, other.args))


def _through(node: Node, injected: set[Node]) -> Node:
    """Return the embeddings with features that a node is a copy of, or has the text of; itself where there are none."""
    found = node
    while found not in injected:
        if found.target in {"to", "clone", "contiguous", "type_as", torch.clone} | _MUL | {"masked_fill"}:
            parents = [arg for arg in found.args if isinstance(arg, Node) and is_hidden_states(arg)]
            if len(parents) == 1:
                found = parents[0]
                continue
        return node
    return found


def _has_channels(features: Node, embeddings: Node) -> bool:
    """Return whether features are whole tokens: ``[..., C]``, and not one for many."""
    value = example_tensor(features)
    if value is None or value.ndim < 2:
        return False
    *rows, channels = [expression(size) for size in value.shape]
    # A symbol is no 1, and what does not fit would be an error.
    fits = channels == expression(example_value(embeddings).shape[-1]) or not channels.is_number
    return fits and sympy.prod(rows) != 1


def _as_mask(emit: Emitter, mask: Node | Placed, embeddings: Node) -> Node:
    if isinstance(mask, Placed):
        start, stop = _bounds(emit, mask)
        return emit(_between, embeddings, start, stop)
    value = example_tensor(mask)
    if value is None or value.ndim == 3:
        return mask
    return emit(_unsqueezed, mask)


def _bounds(emit: Emitter, placed: Placed) -> tuple[int | Node, int | Node]:
    """Return the first position of features, and the first after them."""
    if placed.node.target in _CAT:
        start: int | Node = 0
        for part in arguments(placed.node)[0][: placed.part]:
            start = emit.arithmetic(operator.add, start, emit.size(part, 1))
        size = emit.size(arguments(placed.node)[0][placed.part], 1)
        return start, emit.arithmetic(operator.add, start, size)
    features, start = arguments(placed.node)[1], arguments(placed.node)[3]
    first = expression(example_value(start))
    if first.is_negative:
        start = emit.arithmetic(operator.add, emit.size(placed.node, 1), start)
    elif not first.is_nonnegative:
        raise CannotPrune(
            f"where {format_node(placed.node)} puts visual features is not known to be no negative position"
        )
    return start, emit.arithmetic(operator.add, start, emit.size(features, 1))


def _between(embeddings: Tensor, start: int, stop: int) -> Tensor:
    place = torch.arange(embeddings.shape[1], device=embeddings.device)
    inside = (place >= start) & (place < stop)
    return inside[None, :, None].expand(embeddings.shape[0], -1, 1)


def _unsqueezed(mask: Tensor) -> Tensor:
    return mask.unsqueeze(-1)


def visual_mask(*masks: Tensor) -> Tensor:
    """Masks of injections, ``[B, S, 1 or C]`` bool each, as one ``[B, S]``."""
    whole = [mask[..., 0] if mask.shape[-1] == 1 or mask.stride(-1) == 0 else mask.any(-1) for mask in masks]
    for mask in whole[1:]:
        whole[0] = whole[0] | mask
    return whole[0]


def injected_elements(emit: Emitter, injection: Injection) -> int | Node:
    """Return how many elements the injected features of all rows have, as a number or a node."""
    total: int | Node = 0
    for features in injection.features:
        elements: int | Node = 1
        value = example_tensor(features)
        # Features that another graph injected are an input without an example: as many elements, in one axis.
        for axis in range(1 if value is None else value.ndim):
            elements = emit.arithmetic(operator.mul, elements, emit.size(features, axis))
        total = emit.arithmetic(operator.add, total, elements)
    return total


def visual_tokens(injection: Injection) -> int | SymInt | None:
    """Visual tokens of a row, as the graph was traced; None where another graph injected some of the features."""
    rows, _, channels = example_value(injection.embeddings).shape
    values = [example_tensor(features) for features in injection.features]
    known = [value.numel() for value in values if value is not None]
    return sum(known) // (rows * channels) if len(known) == len(values) else None
