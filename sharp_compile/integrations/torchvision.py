"""Make torchvision's Python part importable where its compiled part can't be loaded.

transformers' image and video processors need torchvision, of which they use the transforms alone: plain
PyTorch. But PyPI's torchvision wheel is built for CUDA. Beside a CPU-only torch its compiled extension can't
be loaded, which torchvision itself tolerates, and then its import fails all the same with `operator
torchvision::nms does not exist`, because it registers shape functions for two operators that the extension
would have declared. Every ``from transformers import Llava...`` fails with it. With the two operators declared
here the import works, and everything that is written in Python with it; calling the two still fails.
"""

import importlib
import importlib.util
import sys

import torch

_MISSING_OPERATORS = ("nms", "qnms")

# An operator lives as long as the Library that declared it.
_declared: list[torch.library.Library] = []


def make_importable() -> None:
    """Import torchvision, with its missing operators declared if that is what it takes.

    Call this before transformers loads anything that needs torchvision. An attempt that failed earlier does
    no harm: transformers loads its modules lazily and tries again. Without torchvision, or with one that
    can be imported as it is, nothing is changed.

    Raises:
        RuntimeError: torchvision is there and can't be imported for some other reason.
        ImportError: Likewise.
    """
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return
    # The failed import leaves those submodules behind that were loaded before the failure. They would not
    # be loaded again and so never become attributes of the new package, which expects them there.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _MISSING_OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    importlib.import_module("torchvision")
