"""Does a pruned model still answer right? Rendered videos, questions on them, and models trained to answer."""

from pathlib import Path

MODELS = Path(__file__).with_name("models")
"""A folder ``seed-N`` for each training seed."""
