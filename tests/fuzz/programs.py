"""Small decoders of any wiring, as FX graphs and as what they are to compute with fewer tokens.

A `Program` runs in two ways: into a graph, as Dynamo makes one, and eagerly. The eager way can prune itself, since it
is told where the cut is and which positions are kept: hidden states and all that has a place for each token are taken
there, with loops over rows, and the rest runs on what is left. That is what the passes are compared with.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import map_arg

IN_ORDER = ("flip", "roll", "cumsum", "mean", "shift", "half", "mixed view", "pad", "scatter", "sort")
"""Pieces that depend on where a token stands or how many there are: nothing is right for fewer tokens after a cut."""

ON_TOKENS = ("mlp", "flat mlp", "gate", "table", "scale", "in place", "stack", "split", "chunk", "dead end", "norm")
"""Pieces that treat each token for itself."""


@dataclass(frozen=True)
class Layer:
    """What is in a decoder layer.

    ``attention`` is how it attends, None where it does not; ``rotary`` the shape of its tables, ``view`` how heads are
    split off. ``back`` is an earlier layer whose input is added at the end. ``injects`` adds features again.
    """

    attention: str | None
    rotary: str | None
    view: str
    pieces: tuple[str, ...]
    back: int | None = None
    injects: bool = False


@dataclass(frozen=True)
class Program:
    """A decoder and its sizes: ``rows`` of ``visual`` tokens between ``before`` and ``after`` text tokens."""

    rows: int
    before: int
    visual: int
    after: int
    heads: int
    kv_heads: int
    head_dim: int
    channels: int
    mask: str | None
    modules: bool
    symbolic: bool
    twice: bool
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    forgotten: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """S."""
        return self.before + self.visual + self.after

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that it is called with, by the names of the placeholders."""
        generator = torch.Generator().manual_seed(self.length + self.channels)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) / max(shape[-1], 1) ** 0.5

        rows, length, channels, dim = self.rows, self.length, self.channels, self.head_dim
        place = torch.arange(length)
        is_visual = ((place >= self.before) & (place < self.before + self.visual)).expand(rows, -1)[..., None].clone()
        features = random(rows * self.visual, channels) * channels**0.5
        visible = (place[:, None] >= place) & (place[:, None] - place < (3 if self.mask == "window" else length))
        mask = visible.expand(rows if self.mask == "rows" else 1, 1, -1, -1).clone()
        if self.mask == "additive":
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        half = torch.outer(place.float(), 1.0 / 50 ** (torch.arange(dim // 2) / dim))
        angle = torch.cat([half, half], -1)
        found = {
            "embeddings": random(rows, length, channels) * channels**0.5,
            "is_visual": is_visual,
            "features": features,
            "mask": mask,
            "cos": angle.cos(),
            "sin": angle.sin(),
            "table": random(length, channels),
            "scale": 1 + random(rows, length, 1),
            "head": random(channels, 7),
        }
        for number, layer in enumerate(self.layers):
            wide, narrow = self.heads * dim, self.kv_heads * dim
            if layer.attention:
                found |= {f"q{number}": random(wide, channels), f"o{number}": random(channels, wide)}
                found |= {f"k{number}": random(narrow, channels), f"v{number}": random(narrow, channels)}
            found |= {f"up{number}": random(2 * channels, channels), f"down{number}": random(channels, 2 * channels)}
        return found

    def last_before(self, cut: int) -> int:
        """The number of the last layer that sees all tokens, of a cut as reports count layers."""
        if self.modules:
            return cut
        attending = [number for number, layer in enumerate(self.layers) if layer.attention]
        return attending[cut + 1] - 1

    def run(self, call: Any, given: dict[str, Any], length: Any, cut: int | None = None, kept: Any = None) -> list[Any]:
        """Runs by `call`, which takes a function or the name of a method; see `Program` for the cut."""
        hidden = call("masked_scatter", given["embeddings"], given["is_visual"], given["features"])
        if self.twice:
            hidden = call("masked_scatter", hidden, given["is_visual"], given["features"])
        side = {name: given[name] for name in ("mask", "cos", "sin", "table", "scale", "is_visual", "features")}
        entering: list[Any] = []
        keys: list[Any] = []
        for number, layer in enumerate(self.layers):
            entering.append(hidden)
            with call.inside(number if self.modules else None):
                weights = {name: given.get(f"{name}{number}") for name in ("q", "k", "v", "o", "up", "down")}
                run = _Run(self, call, side, weights, length)
                hidden, key = run.layer(layer, hidden, entering)
            keys.append(key)
            if cut is not None and number == cut:
                hidden, *entering = [take(each, kept, 1) for each in (hidden, *entering)]
                zeros = torch.zeros_like(given["embeddings"])
                side["added"] = take(zeros.masked_scatter(side["is_visual"], side["features"]), kept, 1)
                side |= {name: take(side[name], kept, side[name].ndim - 2) for name in ("cos", "sin", "table", "scale")}
                side["mask"] = take(take(side["mask"], kept, 2), kept, 3)
                length = kept.shape[1]
        results = []
        for kind in self.outputs:
            if kind == "logits":
                results.append(call(torch.matmul, hidden, given["head"]))
            elif kind == "last":
                results.append(
                    call(torch.matmul, call(operator.getitem, hidden, (slice(None), slice(-1, None))), given["head"])
                )
            elif kind == "hidden":
                results.append(hidden)
            else:
                results += [key for key in keys if key is not None]
        return results


def take(value: Tensor, kept: Tensor, axis: int) -> Tensor:
    """``value`` at the positions of each row along an axis; it gets an axis of rows in front if it has none."""
    if value.ndim == 2:
        value, axis = value[None], axis + 1
    rows = [value[row if len(value) > 1 else 0].index_select(axis - 1, positions) for row, positions in enumerate(kept)]
    return torch.stack(rows)


@dataclass
class _Run:
    """One layer."""

    program: Program
    call: Any
    side: dict[str, Any]
    weights: dict[str, Any]
    length: Any

    def layer(self, layer: Layer, hidden: Any, entering: list[Any]) -> tuple[Any, Any]:
        call, key = self.call, None
        if layer.attention:
            out, key = self.attend(layer, call(F.layer_norm, hidden, (self.program.channels,)))
            hidden = call(operator.add, hidden, out)
        for piece in layer.pieces:
            hidden = self.piece(piece, hidden)
        if layer.back is not None:
            hidden = call(operator.add, hidden, entering[layer.back])
        if layer.injects:
            hidden = call(operator.add, hidden, self.added(hidden))
        return hidden, key

    def added(self, hidden: Any) -> Any:
        if "added" in self.side:
            return self.side["added"]
        zeros = self.call("new_zeros", self.side["features"], (self.program.rows, self.length, self.program.channels))
        return self.call("masked_scatter", zeros, self.side["is_visual"], self.side["features"])

    def split(self, layer: Layer, x: Any, heads: int) -> Any:
        call, program = self.call, self.program
        shape = {
            "sizes": (program.rows, self.length, heads, program.head_dim),
            "heads": (program.rows, self.length, -1, program.head_dim),
            "length": (program.rows, -1, heads, program.head_dim),
            "rows": (-1, self.length, heads, program.head_dim),
        }[layer.view]
        return call("transpose", call("view", x, shape), 1, 2)

    def rotated(self, layer: Layer, x: Any) -> Any:
        call = self.call
        if layer.rotary is None:
            return x
        cos, sin = self.side["cos"], self.side["sin"]
        if layer.rotary == "unsqueezed" or (hasattr(cos, "ndim") and cos.ndim == 3):
            cos, sin = (call("unsqueeze", each, -3) for each in (cos, sin))
        size = self.program.head_dim // 2
        first = call(operator.getitem, x, (Ellipsis, slice(None, size)))
        second = call(operator.getitem, x, (Ellipsis, slice(size, None)))
        turned = call(torch.cat, [call(operator.neg, second), first], -1)
        return call(operator.add, call(operator.mul, x, cos), call(operator.mul, turned, sin))

    def attend(self, layer: Layer, x: Any) -> tuple[Any, Any]:
        call, program = self.call, self.program
        q, k, v = (call(F.linear, x, self.weights[name]) for name in "qkv")
        q = self.rotated(layer, self.split(layer, q, program.heads))
        k = self.rotated(layer, self.split(layer, k, program.kv_heads))
        v = self.split(layer, v, program.kv_heads)
        mask = self.side["mask"]
        groups = program.heads // program.kv_heads
        if layer.attention == "fused" and program.mask is None:
            out = call(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=groups > 1)
        elif layer.attention == "fused":
            out = call(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, enable_gqa=groups > 1)
        else:
            k_all, v_all = (call("repeat_interleave", each, groups, 1) if groups > 1 else each for each in (k, v))
            scores = call(operator.mul, call(torch.matmul, q, call("transpose", k_all, 2, 3)), program.head_dim**-0.5)
            if program.mask != "additive":
                mask = call(torch.where, mask, 0.0, torch.finfo(torch.float32).min)
            scores = call(operator.add, scores, mask)
            out = call(torch.matmul, call(F.softmax, scores, dim=-1), v_all)
        out = call("transpose", out, 1, 2)
        out = call("reshape", out, (program.rows, self.length, program.heads * program.head_dim))
        return call(F.linear, out, self.weights["o"]), k

    def piece(self, piece: str, hidden: Any) -> Any:
        call, rows, channels, length = self.call, self.program.rows, self.program.channels, self.length
        if piece in ("mlp", "flat mlp"):
            x = hidden
            if piece == "flat mlp":
                x = call("reshape", x, (call.times(rows, length), channels))
            x = call(F.linear, call(F.gelu, call(F.linear, x, self.weights["up"])), self.weights["down"])
            if piece == "flat mlp":
                x = call("view", x, (rows, length, channels))
            return call(operator.add, hidden, x)
        if piece == "gate":
            return call(operator.mul, hidden, call("sigmoid", call("mean", hidden, -1, True)))
        if piece == "table":
            return call(operator.add, hidden, self.side["table"])
        if piece == "scale":
            return call(operator.mul, hidden, self.side["scale"])
        if piece == "in place":
            new = call("clone", hidden)
            return call(operator.iadd, new, hidden)
        if piece == "stack":
            return call("sum", call(torch.stack, [hidden, hidden], 1), 1)
        if piece in ("split", "chunk"):
            halves = call("chunk", hidden, 2, -1)
            parts = [call(operator.getitem, halves, place) for place in range(2 if channels > 1 else 1)]
            return call(torch.cat, parts[::-1], -1)
        if piece == "dead end":
            call("flip", hidden, [1])
            return hidden
        if piece == "norm":
            return call(F.layer_norm, hidden, (channels,))
        # From here on, tokens by their places.
        if piece == "flip":
            return call("flip", hidden, [1])
        if piece == "roll":
            return call(torch.roll, hidden, 1, 1)
        if piece == "cumsum":
            return call(torch.cumsum, hidden, 1)
        if piece == "mean":
            return call(operator.add, hidden, call("mean", hidden, 1, True))
        if piece == "shift":
            after = call(F.pad, hidden, (0, 0, 1, -1))
            return call(operator.add, hidden, after)
        if piece == "half":
            return call(operator.add, hidden, call(operator.getitem, hidden, (slice(None), slice(0, 1))))
        if piece == "mixed view":
            return call("reshape", call("transpose", hidden, 1, 2), (rows, length, channels))
        if piece == "pad":
            return call(operator.getitem, call(F.pad, hidden, (0, 0, 1, 0)), (slice(None), slice(0, -1)))
        if piece == "scatter":
            return call("index_copy", hidden, 1, call(torch.arange, 1), call("mean", hidden, 1, True))
        assert piece == "sort"
        return call(operator.getitem, call(torch.sort, hidden, 1), 0)


class Eagerly:
    """Calls at once."""

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)

    def times(self, left: int, right: int) -> int:
        return left * right

    def inside(self, layer: int | None) -> Any:
        return _Inside(self, None)


@dataclass
class _Inside:
    owner: Any
    layer: int | None

    def __enter__(self) -> None:
        self.owner.now = self.layer

    def __exit__(self, *_: object) -> None:
        self.owner.now = None


@dataclass
class Traced:
    """Calls that become nodes of a graph, with example values as Dynamo leaves them."""

    graph: Graph
    mode: FakeTensorMode
    now: int | None = None
    nodes: list[Node] = field(default_factory=list)

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        make = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        node = make(target, args, kwargs)
        values, named = map_arg((args, kwargs), lambda leaf: leaf.meta["example_value"])
        with self.mode, enable_python_dispatcher():
            node.meta["example_value"] = Eagerly()(target, *values, **named)
        if self.now is not None:
            path = f"L['self'].layers.{self.now}"
            node.meta["nn_module_stack"] = {"list": (path, torch.nn.Module), "own": (f"{path}.part", torch.nn.Module)}
        self.nodes.append(node)
        return node

    def times(self, left: Any, right: Any) -> Any:
        return self(operator.mul, left, right) if isinstance(right, Node) else left * right

    def inside(self, layer: int | None) -> _Inside:
        return _Inside(self, layer)


def graph_of(program: Program) -> tuple[GraphModule, list[Any]]:
    """The program as a graph, and real inputs for it."""
    graph = Graph()
    mode = FakeTensorMode(shape_env=ShapeEnv() if program.symbolic else None, allow_non_fake_inputs=True)
    given = program.inputs()
    nodes: dict[str, Any] = {}
    length: Any = program.length
    values: list[Any] = []
    sizes = {program.length: None}
    fakes = {}
    if program.symbolic:
        dynamic = {"embeddings": 1, "features": 0}
        for name, axis in dynamic.items():
            kinds = [DimDynamic.DYNAMIC if each == axis else DimDynamic.STATIC for each in range(given[name].ndim)]
            context = StatelessSymbolicContext(dynamic_sizes=kinds)
            fakes[name] = mode.from_tensor(given[name], symbolic_context=context, source=_source(name))
        sizes[program.length] = fakes["embeddings"].shape[1]
        length = graph.placeholder("length")
        length.meta["example_value"] = sizes[program.length]
        values.append(program.length)
    along = {"is_visual": (1,), "mask": (2, 3), "cos": (0,), "sin": (0,), "table": (0,), "scale": (1,)}
    for name, tensor in given.items():
        if name not in fakes and program.symbolic and name in along:
            shape = [sizes[program.length] if axis in along[name] else size for axis, size in enumerate(tensor.shape)]
            with mode:
                fakes[name] = torch.empty(shape, dtype=tensor.dtype)
        elif name not in fakes:
            fakes[name] = mode.from_tensor(tensor, static_shapes=True)
        nodes[name] = graph.placeholder(name)
        nodes[name].meta["example_value"] = fakes[name]
        values.append(tensor)
    call = Traced(graph, mode)
    graph.output(tuple(program.run(call, nodes, length)))
    for place in program.forgotten:
        call.nodes[place % len(call.nodes)].meta.pop("example_value", None)
    return GraphModule(torch.nn.Module(), graph), values


def _source(name: str) -> Any:
    from torch._dynamo.source import LocalSource

    return LocalSource(name)
