"""Checkpoints: weights from safetensors only, and no code that comes with them unless that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..short_repr import brief


class CheckpointError(Exception):
    """A checkpoint can't be loaded; the message says why, in a line."""


def load(name: str, dtype: torch.dtype | str, trust_remote_code: bool = False, local: bool = False) -> tuple[Any, Any]:
    """Return a model that answers in text about images or videos, and its processor.

    Args:
        name: a folder, or the name of a checkpoint on the Hugging Face hub.
        dtype: of the weights, or ``"auto"`` for the one that they are stored in.
        trust_remote_code: whether code that comes with the checkpoint may run.
        local: whether nothing may be fetched.

    Raises:
        CheckpointError: where there is no such checkpoint, or anything in it is not what it should be.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    _check_names_of_weights(Path(name))
    try:
        processor = AutoProcessor.from_pretrained(name, **settings)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, use_safetensors=True, **settings)
    except Exception as error:  # each library that reads a file of the folder has errors of its own
        raise CheckpointError(brief(error)) from error
    return model, processor


def _check_names_of_weights(folder: Path) -> None:
    """Refuse a folder whose own files call others than safetensors its weights: they would be read as pickle."""
    for index in folder.glob("*.safetensors.index.json"):
        parts = _read(index).get("weight_map")
        for name in parts.values() if isinstance(parts, dict) else ():
            _check_name(index, name)
    config = folder / "config.json"
    named = _read(config).get("transformers_weights") if config.is_file() else None
    if named is not None:
        _check_name(config, str(named).removesuffix(".index.json"))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} can't be read: {brief(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file.name} must be a JSON object")
    return content


def _check_name(file: Path, name: object) -> None:
    if not str(name).endswith(".safetensors"):
        raise CheckpointError(f"{file.name} names {name} for weights, only safetensors are read")
