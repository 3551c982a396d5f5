"""``python -m sharp_compile``: the ``sharp-compile`` command."""

from __future__ import annotations

from .tools.cli import main

if __name__ == "__main__":  # processes that commands start import this file, too
    main()
