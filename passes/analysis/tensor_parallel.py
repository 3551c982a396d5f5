"""Finds out whether other processes hold a part of the attention heads: tensor parallelism.

Every rank runs the same graph on the same inputs, with its own shard of some parameters. So a node holds either the
same on all ranks or what is the rank's own, and the graph shows which:

* a sharded parameter says so itself: it comes in as a ``DTensor``, of which ``to_local`` takes the rank's own shard;
* what is computed from something own is own, until an ``all_reduce`` makes it the same again;
* all else, the graph's inputs among it, is the same.

A rule that scored by a rank's own heads would keep other tokens on every rank. Where queries and keys are own, it is
given those of all ranks: then each rank scores by all heads, as one process would, whatever the rule makes of them. And
the first rank's choice holds for all, so that no rounding can make them differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from ..errors import CannotPrune
from ..fx.nodes import arguments, example_tensor, example_value, format_node, writes_into_first
from ..fx.sizes import expression
from .attention import Attention
from .decoder import Decoder
from .rope import RopeSubgraph

_COLLECTIVES = "_c10d_functional."


@dataclass(frozen=True)
class TensorParallelInfo:
    """Processes that share the work of one graph.

    ``group`` is the name of their process group, ``number`` how many they are. ``shards`` are the nodes that take the
    rank's own shard of a parameter; ``own`` has for each node that is not the same on all ranks those of them
    that it was computed from.
    """

    group: str
    number: int
    shards: frozenset[Node]
    own: dict[Node, frozenset[Node]]

    def share_heads(self, layer: int, hidden: Node, attention: Attention | None, rope: RopeSubgraph | None) -> bool:
        """Return whether each rank has other heads of a layer that is to score.

        Args:
            layer: its number.
            hidden: what enters it, ``[B, S, C]``.
            attention: that of the layer; None where the rule needs none.
            rope: that of its keys, None without attention.

        Raises:
            CannotPrune: where that is not shown by the graph, or what a rule looks at beside the heads differs too.
        """
        if hidden in self.own:
            raise CannotPrune(
                f"the hidden states that enter decoder layer {layer} are not the same on all ranks, such as those of "
                "a part of the sequence"
            )
        if attention is None or rope is None:
            return False
        query, key = self.own.get(attention.query, frozenset()), self.own.get(attention.key, frozenset())
        if not (query or key):
            return False
        mask = example_tensor(attention.mask)
        others = [attention.mask, attention.scale, attention.sinks, *_inputs(rope)]
        if any(node in self.own for node in others) or (mask is not None and expression(mask.shape[1]) != 1):
            raise CannotPrune(f"the ranks share the heads of layer {layer}, and its mask, positions or sinks as well")
        if not query or not all(map(self._makes_features, query | key)):
            raise CannotPrune(
                f"queries or keys of layer {layer} differ between the ranks, but not as those of heads that are shared "
                "out evenly: by linear projections whose weights are split by their rows"
            )
        return True

    def gather_heads(self, value: Tensor) -> Tensor:
        """Return the heads of all ranks, in the order of the ranks: ``[B, H, ...]`` as ``[B, number * H, ...]``."""
        operators = torch.ops._c10d_functional
        stacked = operators.wait_tensor(operators.all_gather_into_tensor(value.contiguous(), self.number, self.group))
        return stacked.unflatten(0, (self.number, -1)).transpose(0, 1).flatten(1, 2)

    def broadcast_from_rank0(self, value: Tensor) -> Tensor:
        """Return what the first rank has."""
        operators = torch.ops._c10d_functional
        return operators.wait_tensor(operators.broadcast(value, 0, self.group))

    def _makes_features(self, shard: Node) -> bool:
        """Return whether a shard gives each rank its even share of the features of a linear projection."""
        if shard not in self.shards:
            return False
        value = example_value(shard.args[0])
        (placement,) = value.placements
        is_even = value.shape[0] % self.number == 0
        return placement.is_shard(0) and is_even and all(_is_projected(user, shard) for user in shard.users)


def find_tensor_parallel(decoder: Decoder) -> TensorParallelInfo | None:
    """Return the processes among which the work of a graph is shared; None where one does it all.

    Raises:
        CannotPrune: where the graph communicates, and does not show what is shared out.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    from torch.distributed.tensor import DTensor

    shards: dict[Node, tuple[str, int]] = {}
    own: dict[Node, frozenset[Node]] = {}
    written: dict[int, frozenset[Node]] = {}
    for node in decoder.embeddings.graph.nodes:
        value = example_value(node)
        if isinstance(value, DTensor) and node in decoder.dataflow:
            raise CannotPrune(
                f"{format_node(node)} computes with distributed tensors, as tensor parallelism does for gradients "
                "(call the model under torch.no_grad()) and for parts of a sequence (leave these out of the plan)"
            )
        # Of a copy, what was there before is overwritten.
        read = arguments(node)[1:] if node.target is torch.ops.aten.copy.default else [node, *node.all_input_nodes]
        sources = frozenset[Node]().union(
            *(own.get(parent, ()) for parent in read), *(written.get(storage, ()) for storage in _storages(read))
        )
        if node.target == "to_local":
            # A distributed tensor says itself what its shards are.
            source = example_value(node.args[0])
            is_same = all(placement.is_replicate() for placement in source.placements)
            sources = frozenset() if is_same else frozenset([node])
            if not is_same and node.args[0].op == "placeholder":
                shards[node] = _group(node, source)
        elif isinstance(value, DTensor):
            sources = frozenset()
        elif str(node.target).startswith(f"{_COLLECTIVES}all_reduce"):
            group = str(arguments(node)[2])
            if not sources or any(shards.get(shard, ("", 0))[0] != group for shard in sources):
                raise _unknown(node)
            sources = frozenset()
        elif str(node.target).startswith(_COLLECTIVES) and "wait_tensor" not in str(node.target):
            raise _unknown(node)
        if sources:
            own[node] = sources
            if writes_into_first(node):
                for storage in _storages([arguments(node)[0]]):
                    written[storage] = written.get(storage, frozenset()) | sources
    groups = set(shards.values())
    if len(groups) > 1:
        raise CannotPrune(
            f"the parameters are sharded over several process groups, {', '.join(sorted(name for name, _ in groups))}"
        )
    return TensorParallelInfo(*groups.pop(), frozenset(shards), own) if groups else None


def _group(node: Node, value: Any) -> tuple[str, int]:
    """Return the name and the size of the process group over which a distributed tensor is sharded."""
    mesh = value.device_mesh
    if mesh.ndim != 1:
        raise CannotPrune(
            f"{format_node(node)} takes a parameter that is sharded over a mesh of {mesh.ndim} dimensions"
        )
    return str(mesh.get_group().group_name), mesh.size()


def _unknown(node: Node) -> CannotPrune:
    return CannotPrune(
        f"{format_node(node)} communicates with other processes, and the graph does not show what they share: "
        "no parameters that are distributed tensors"
    )


def _is_projected(user: Node, shard: Node) -> bool:
    """Return whether ``user`` is a linear projection of which ``shard`` is the weight or the bias."""
    given = dict(zip(("input", "weight", "bias"), user.args, strict=False)) | user.kwargs
    return user.target is F.linear and given["input"] is not shard


def _inputs(rope: RopeSubgraph) -> Iterable[Node]:
    """Return what a rotation reads beside the keys."""
    inside = {rope.pre_rope, *rope.nodes}
    return (parent for node in rope.nodes for parent in node.all_input_nodes if parent not in inside)


def _storages(nodes: Iterable[Any]) -> set[int]:
    """Return the memory of the tensors among ``nodes``, as numbers."""
    values = [value for node in nodes if isinstance(value := example_value(node), FakeTensor)]
    return {value.untyped_storage()._cdata for value in values}
