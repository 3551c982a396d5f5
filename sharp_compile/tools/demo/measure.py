"""What a prefill is, how much it computes, and what it leaves in the cache.

A prefill here is ``model.generate(..., max_new_tokens=1)``: what a user waits for until the first token of the
answer is there. Vision tower, decoder and language-model head are all part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sharp_compile.flops import flop_counter
from sharp_compile.tools.weight_sharing import weight_sharing_copy

if TYPE_CHECKING:
    from sharp_compile.tools.demo.models import Case


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one prefill: of all of it, and of the part that a compiler gets to see.

    A multiplication and an addition are two. Attention is counted in full, masked or not, as PyTorch's own
    counter does.
    """

    prefill: int
    decoder: int


def prefill(case: Case, model: Any) -> Any:
    """Run one prefill with `model`, the case's own or one that shares its weights, and return what `generate` does."""
    return model.generate(**case.inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)


def eager_flops(case: Case) -> Flops:
    """Count the operations of the model as it is."""
    with flop_counter() as counter:
        prefill(case, case.model)
    # `generate` calls the vision tower by itself, before the model's forward.
    decoder = sum(counter.get_flop_counts()[type(case.model).__name__].values())
    return Flops(counter.get_total_flops(), decoder)


def pruned_flops(case: Case, options: Mapping[str, Any], eager: Flops) -> Flops:
    """Count the operations of the graphs that really run with the sharp backend.

    A counter around a compiled call would see nothing: below an active dispatch mode Dynamo runs the
    original code, and for good. So the count is taken inside, by what the backend hands its graphs to.

    Args:
        case: The model and its inputs.
        options: The backend's options, but for ``inner``.
        eager: What the model takes when it isn't compiled.
    """
    counts = [0]

    def count(graph: torch.fx.GraphModule, _example_inputs: Sequence[Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            with flop_counter() as counter:
                outputs = graph(*inputs)
            counts[0] += counter.get_total_flops()
            return outputs

        return run

    model = weight_sharing_copy(case.model)
    model.compile(backend="sharp", options={**options, "inner": count})
    prefill(case, model)
    return Flops(eager.prefill - eager.decoder + counts[0], counts[0])


def cache_lengths(output: Any) -> list[int]:
    """Return how many positions each layer has in the cache; 0 for a layer that caches no keys."""
    keys = [getattr(layer, "keys", None) for layer in output.past_key_values.layers]
    return [0 if key is None else int(key.shape[-2]) for key in keys]
