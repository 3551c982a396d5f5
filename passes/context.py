"""What is known of one graph, from one phase of the pipeline to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..options import Config, Cut
from ..selectors import Rule
from ..sharp_options import Segment
from .analysis.attention_mask import MaskFormula
from .analysis.cut_sites import CutSite
from .analysis.decoder import Decoder
from .analysis.injection import Injection
from .analysis.tensor_parallel import TensorParallelInfo
from .canonicalize.flash_to_sdpa import Flash
from .canonicalize.flex_to_sdpa import Flex
from .canonicalize.static_cache import CacheSlack
from .fx.emit import Emitter
from .rewrite.early_gather import Hoisted
from .rewrite.shrink import Stage
from .token_dim.plan import Plans, Returned

TextCheck = Literal["never", "now", "late"]


@dataclass
class PassContext:
    """One attempt to prune a graph, in a copy of its own.

    Each phase fills its part, and reads the parts of those before.

    Attributes:
        emit: adds nodes to the copy.
        injection: where the visual features are.
        config: the options.

        slack: canonicalize: the buffers of preallocated caches, with unused slots after the tokens.
        flex: canonicalize: the fused attentions that stand for flex_attention.
        flash: canonicalize: the fused attentions that stand for operators of FlashAttention.

        decoder: analyze: the layers.
        ranks: analyze: the processes that share the work; None where one does it all.
        rule: analyze: the selection rule.
        sites: analyze: where the cuts are made, in order.
        remark: analyze: why a cut is not where it was asked for; "" if all are.
        mask: analyze: the attention mask that shows padding; None where all tokens see each other in order.
        formulas: analyze: what the masks of the decoder were made from, as far as that is understood.
        is_padding: analyze: finds padding ``[B, S]`` from the visual tokens and ``shows_padding``.
        steering: analyze: the segments that the forward pass up to the first cut is masked by; None without.

        hoisted: plan: the scoring layer whose cut was moved to its input; None where it stays.
        plans: plan: how each node after a cut runs on fewer tokens.
        queries: plan: the queries of the hoisted layer as a function of positions, and its inputs.
        least: plan: the fewest tokens that may be left of a row.
        returned_lengths: plan: the numbers of tokens after a cut that the graph returns, less S, each.

        stages: rewrite: the kept tokens after each cut.
        lengths: rewrite: by the names of a report; numbers, or the nodes of symbolic ones.
        dense_masks: rewrite: how many layers read a mask of all pairs still.
        aux_outputs: rewrite: what the graph returns beside its own results, by name.
        text_check: rewrite: see ``PruneResult``.
    """

    emit: Emitter
    injection: Injection
    config: Config

    slack: CacheSlack = field(init=False)
    flex: dict[Node, Flex] = field(init=False)
    flash: dict[Node, Flash] = field(init=False)

    decoder: Decoder = field(init=False)
    ranks: TensorParallelInfo | None = field(init=False)
    rule: Rule = field(init=False)
    sites: list[CutSite] = field(init=False)
    remark: str = field(init=False)
    mask: Node | None = field(init=False)
    formulas: dict[Node, MaskFormula] = field(init=False)
    is_padding: Callable[..., Tensor] = field(init=False)
    steering: Segment | None = field(init=False)

    hoisted: Hoisted | None = field(init=False)
    plans: Plans = field(init=False)
    queries: tuple[GraphModule, list[Node]] | None = field(init=False)
    least: int = field(init=False)
    returned_lengths: dict[Node, int] = field(init=False)

    stages: list[Stage] = field(init=False)
    lengths: dict[str, int | Node] = field(init=False)
    dense_masks: int = field(init=False)
    aux_outputs: dict[str, Node] = field(init=False)
    text_check: TextCheck = field(init=False)

    @property
    def graph(self) -> Graph:
        """The graph that is analysed and rewritten."""
        return self.emit.graph

    def formula_of(self, mask: Node | None) -> MaskFormula | None:
        """Return the formula of a mask as the graph had it before it was rewritten; None where it is not known."""
        return None if mask is None else self.formulas.get(mask)

    @property
    def shows_padding(self) -> list[Node]:
        """What shows which tokens are padding: the tables of a mask that is understood, else the mask, or nothing."""
        formula = self.formula_of(self.mask)
        return formula.tables if formula is not None else [self.mask] if self.mask is not None else []

    @property
    def cuts(self) -> list[Node]:
        """The nodes ``[B, S, C]`` after which there are fewer tokens, by what is known of hoisting."""
        cuts = [site.after for site in self.sites]
        return cuts if self.hoisted is None else [self.hoisted.entry, *cuts[1:]]


@dataclass(frozen=True)
class PruneResult:
    """A pruned graph, and what was done to it.

    Attributes:
        module: the pruned copy; it returns the auxiliary outputs too, at the end.
        cuts: the layers and shares as they were done.
        num_layers: how many layers the decoder has.
        remark: why a cut is not where it was asked for; "" if all are.
        lengths: by the names of a report: numbers, or the nodes of symbolic ones.
        hoisted: whether the first cut is at the input of its layer, for all but keys and values.
        aux_outputs: the names of the auxiliary outputs: those that a report has by these names; ``text``, the number of
            text tokens of each row, ``[B]`` int64; and ``visual``, the visual tokens of a row before any cut, in a
            graph that does not know them when it is rewritten.
        text_check: when it is seen whether a row has more text than positions are kept: never where there is surely one
            row, which has all visual tokens itself; before a result is used ("now"); or after, with NaN for all that
            follows from the hidden states of such a row ("late").
        returned: those of the graph's own results that are shortened.
        states: the places of those that are hidden states ``[B, S', C]`` after the last cut.
        positions: the places of those that are kept positions, which caches hold.
        least: the fewest tokens that may be left of a row.
        dense_masks: how many decoder layers read a mask of all pairs still.
    """

    module: GraphModule
    cuts: tuple[Cut, ...]
    num_layers: int
    remark: str
    lengths: dict[str, int | Node]
    hoisted: bool
    aux_outputs: tuple[str, ...]
    text_check: TextCheck
    returned: tuple[Returned, ...]
    states: tuple[int, ...]
    positions: tuple[int, ...]
    least: int
    dense_masks: int


AUX_OUTPUT = "aux_output"
"""The name by which the node of an auxiliary output has its own in its ``meta``."""


def kept_at(stage: int) -> str:
    """Return the name of the auxiliary output that has the positions kept at a stage before the last."""
    return f"kept_{stage}"
