"""``python -m sharp_compile``: the ``sharp-compile`` command."""

from __future__ import annotations

from .tools.cli import main

main()
