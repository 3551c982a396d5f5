"""Code after the decoder that Dynamo puts in a graph of its own: a head, a loss, pooling.

Such a graph pairs the decoder's hidden states with the prompt, which has its full length: with token ids, masks and
labels. So where more code of the call reads them, the pruned graph hands its last hidden states on at the full length
again: each position holds the state of the last kept token that is not after it. Dynamo then traces that code with
lengths that agree, and the graph gives right answers as it is.

The graph is told so, by the tensor's identity (``tensor_records.shortened``), and runs on the kept tokens what the
passes
can prove to be the same there: a head over all tokens, the loss, a mean over a mask (``passes.rewrite.tail``).

Where the user asked for the hidden states of every layer, the last of them is the very tensor that the head reads. It
is handed on short then, as all of these are; the head's graph is traced short, and only what takes tokens at positions
of the whole sequence reads the full length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..integrations import transformers
from ..passes.analysis.attention import attend_to
from ..passes.errors import CannotPrune
from ..passes.fx.nodes import copy_of
from ..passes.rewrite.shrink import expand_tokens
from ..passes.rewrite.tail import Tail, follow_full, follow_short
from ..passes.token_dim.plan import Returned
from ..tensor_records import KEPT_POSITIONS, Shortened, as_size_tensor, shortened
from .callers import goes_on
from .inner import Compiled

log = logging.getLogger(__name__)


def hand_on(
    results: Sequence[Any],
    returned: Sequence[Returned],
    states: Sequence[int],
    kept: Mapping[int, Tensor],
    length: int,
    broke: bool,
) -> list[Any]:
    """Return the results of a pruned graph for the code that called it, with records of what they are.

    Args:
        results: what the graph returned.
        returned: which of these are shortened.
        states: the places of hidden states after the last cut.
        kept: by stage, the positions kept.
        length: S.
        broke: whether Dynamo ended the graph by a break.
    """
    transformers.install_late()
    results = list(results)
    full = states[0] if len(states) == 1 and goes_on(broke) else None
    for each in returned:
        record = Shortened(kept[each.stage], length, each.axis, each.batch_axis, each.place == full)
        value = results[each.place]
        if record.is_full:
            value = expand_tokens(value, record.kept, length, each.axis, each.batch_axis)
            results[each.place] = value
        elif value.ndim == 2:
            setattr(value, KEPT_POSITIONS, record.kept)
        shortened.publish(value, record)
    return results


class TailGraph:
    """A graph that reads hidden states of a pruned one, for each input that held some.

    Whether an input does is known at run time only, call by call. Its kept positions are no input of Dynamo's graph:
    the rewritten graph gets them as one more, and is compiled in its own right.
    """

    def __init__(
        self,
        module: GraphModule,
        compile_copy: Callable[[GraphModule], Compiled],
        decline: Callable[[Exception], None],
    ) -> None:
        self.module, self.compile_copy, self.decline = module, compile_copy, decline
        self.compiled: dict[tuple[int, bool], tuple[Compiled, Tail] | None] = {}

    @staticmethod
    def find(inputs: Sequence[Any]) -> tuple[int, Shortened] | None:
        """The place of the hidden states among `inputs`, and what they are; None where there are none, or several."""
        found = [
            (place, record)
            for place, value in enumerate(inputs if shortened else ())
            if (record := shortened.find(value)) is not None and value.ndim == 3 and record.axis == 1
        ]
        return found[0] if len(found) == 1 else None

    def prepare(self, place: int, states: Shortened) -> Callable[[Sequence[Any]], list[Any]] | None:
        """Return the graph on the kept tokens of such an input; None where it is right as it is."""
        key = place, states.is_full
        if key not in self.compiled:
            self.compiled[key] = self._follow(place, states.is_full)
        followed = self.compiled[key]
        if followed is None:
            return None
        compiled, tail = followed

        def run(inputs: Sequence[Any]) -> list[Any]:
            whole = as_size_tensor(states.length, states.kept)
            torch._dynamo.maybe_mark_dynamic(whole, 0)
            results = list(compiled(*inputs, states.kept, whole))
            for each in tail.returned:
                record = Shortened(states.kept, states.length, each.axis, each.batch_axis)
                shortened.publish(results[each.place], record)
            return results

        return run

    def _follow(self, place: int, is_full: bool) -> tuple[Compiled, Tail] | None:
        copy = copy_of(self.module)
        follow = follow_full if is_full else follow_short
        try:
            tail = follow(copy, place)
        except CannotPrune as reason:
            if not is_full:
                raise ValueError(
                    f"the call returns the hidden states of every layer, which were shortened, and {reason}. Call the "
                    "model without output_hidden_states, or without what reads them"
                ) from reason
            self._check_counts_no_copy(place, str(reason))
            log.info("runs on hidden states at full length: %s", reason)
            return None
        except Exception as error:  # a fault of ours: at full length the graph is right as it is
            if not is_full:
                raise
            self.decline(error)
            return None
        if tail is None:
            self._check_counts_no_copy(place, "it knows them by their positions")
            return None
        return self.compile_copy(copy), tail

    def _check_counts_no_copy(self, place: int, reason: str) -> None:
        """Refuse attention to states at the full length, in which each dropped one is a copy of a kept one."""
        graph = self.module.graph
        if attend_to(graph, graph.find_nodes(op="placeholder")[place : place + 1]):
            raise ValueError(
                "the code after the decoder, or the encoder, attends to its hidden states, of which there are fewer: "
                f"{reason}. Compile this model without sharp_compile"
            )
