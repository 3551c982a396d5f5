"""What transformers needs beside the graphs that it gives rise to. Where it is not loaded, nothing is done."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from . import caches, deepstack, loss, masks, router, sequence
from .heads import hands_states_on as hands_states_on
from .loss import install_late as install_late

_installed = False


def install() -> None:
    """Prepares transformers for being compiled, once a process; does nothing where it is not loaded.

    What is to be done to a model's module is done to those that are loaded, and to each that will be as soon as it
    defines a model.
    """
    global _installed
    if _installed or "transformers" not in sys.modules:
        return
    from transformers.modeling_utils import PreTrainedModel

    masks.install()
    caches.install()
    loss.install()
    sequence.install()
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models."):
            sequence.keep_whole(module)
            masks.install_in(module)
            router.install_in(module)
            for value in list(vars(module).values()):
                if inspect.isclass(value):
                    deepstack.make_traceable(value)
    before = PreTrainedModel.__init_subclass__

    def init_subclass(cls: type, **kwargs: Any) -> None:
        before.__func__(cls, **kwargs)  # type: ignore[attr-defined]
        sequence.keep_whole(sys.modules[cls.__module__])
        masks.install_in(sys.modules[cls.__module__])
        router.install_in(sys.modules[cls.__module__])
        deepstack.make_traceable(cls)

    PreTrainedModel.__init_subclass__ = classmethod(init_subclass)  # type: ignore[assignment, method-assign]
    _installed = True
