"""Numbers that a model reads out of its inputs while it is traced: a video's grid, which images are real.

Python code that goes by such numbers can only be traced for one choice of them. While ``KnownValues`` is active, what
is computed from inputs alone, and from no weights, is computed for the example as well, beside the trace. A number that
is read is that of the example, and so is a size that depends on data; the program checks both when it runs. So it is
never wrong for other inputs: it ends with an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx.experimental.symbolic_shapes import is_symbolic
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from ..short_repr import short_repr

_READ = {
    Tensor.tolist,
    Tensor.item,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__bool__,
    Tensor.__index__,
}
# Functions that read sizes, which models give them as tensors too.
_TAKE_SIZES = {
    *("view", "reshape", "expand", "repeat", "tile", "unflatten", "split", "narrow"),
    *("arange", "linspace", "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"),
    *("interpolate", "pad"),
}

_UNKNOWN = object()


class KnownValues(TorchFunctionMode):
    """Knows the values, for an example, of what is computed from some inputs alone.

    Attributes:
        values: by the identity of a traced tensor: it, to keep it, and its value for the example.
    """

    def __init__(self, inputs: Mapping[str, Tensor], examples: Mapping[str, Tensor]) -> None:
        """Take the tensors that stand for the inputs in the trace, and the example's own, by name."""
        super().__init__()
        with _disable_current_modes():
            values = {name: value.clone() for name, value in examples.items()}
        self.values: dict[int, tuple[Tensor, Tensor]] = {
            id(value): (value, values[name]) for name, value in inputs.items()
        }

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READ and id(args[0]) in self.values:
            return self._read(func, args[0])
        if getattr(func, "__name__", "") in _TAKE_SIZES:
            args, kwargs = pytree.tree_map_only(Tensor, self._number, (args, kwargs))
        if func is Tensor.__getitem__ and self._is_known_mask(args[1]):
            args = args[0], self._places(args[1])
        given = pytree.tree_leaves((args, kwargs))
        known = all(id(leaf) in self.values for leaf in given if isinstance(leaf, Tensor))
        # In front of the function, which may write into its arguments.
        expected = self._compute(func, args, kwargs) if known else _UNKNOWN
        result = func(*args, **kwargs)
        if expected is _UNKNOWN:
            self._forget(func, given)
            return result
        for traced, value in _pairs(result, expected):
            self._check_size(traced, value)
            self.values[id(traced)] = traced, value
        return result

    def _read(self, func: Any, tensor: Tensor) -> Any:
        """Return a number or numbers of the example, which the program will check."""
        _, value = self.values[id(tensor)]
        with _disable_current_modes():
            numbers = value.tolist()
            result = func(value)
        same = tensor == torch.tensor(numbers, dtype=tensor.dtype, device=tensor.device)
        message = f"this program is for inputs in which the model reads {short_repr(numbers)}, as in its example"
        torch._assert_async(same.all(), message)
        return result

    def _is_known_mask(self, index: Any) -> bool:
        return isinstance(index, Tensor) and index.dtype == torch.bool and id(index) in self.values

    def _places(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Return where a mask is true, for an index by it: that has no size that depends on data."""
        places = self._read(lambda value: value.nonzero(as_tuple=True), mask)
        return tuple(torch.tensor(each.tolist(), device=mask.device) for each in places)

    def _number(self, tensor: Tensor) -> Any:
        """Return the number that a tensor of one integer is known to hold; other tensors as they are."""
        is_size = tensor.ndim == 0 and not tensor.is_floating_point() and id(tensor) in self.values
        return self._read(Tensor.item, tensor) if is_size else tensor

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what a function gives for the example; ``_UNKNOWN`` where that can't be known."""

        def example(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.values[id(leaf)][1]
            return leaf.node.hint if isinstance(leaf, SymInt | SymFloat | SymBool) else leaf

        try:
            args, kwargs = pytree.tree_map(example, (args, kwargs))
            with _disable_current_modes():
                return func(*args, **kwargs)
        except Exception:  # the trace itself will tell of it
            return _UNKNOWN

    def _forget(self, func: Any, given: Iterable[Any]) -> None:
        """Forget a tensor that was written into by what is not known."""
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i"):
            for leaf in given:
                if isinstance(leaf, Tensor):
                    self.values.pop(id(leaf), None)

    def _check_size(self, traced: Tensor, value: Tensor) -> None:
        """Take a size that depends on data for that of the example."""
        for size, expected in zip(traced.shape, value.shape, strict=True):
            if is_symbolic(size) and not size.node.has_hint():
                torch._check(size == expected)


def _pairs(traced: Any, values: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the tensors of a result in the trace, each with its value."""
    ours, theirs = pytree.tree_leaves(traced), pytree.tree_leaves(values)
    if len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            if isinstance(one, Tensor) and isinstance(other, Tensor) and one.ndim == other.ndim:
                yield one, other
