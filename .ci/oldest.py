"""Prints the oldest versions that pyproject.toml allows, one requirement of pip a line.

python .ci/oldest.py [EXTRA ...]

Those of torch and what goes with it (triton, torchvision) are left to the caller.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

WITH_TORCH = {"torch", "torchvision", "triton"}

project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + [each for extra in sys.argv[1:] for each in project["optional-dependencies"][extra]]
for requirement in map(Requirement, wanted):
    (oldest,) = (each.version for each in requirement.specifier if each.operator == ">=")
    if requirement.name not in WITH_TORCH:
        print(f"{requirement.name}=={oldest}")
