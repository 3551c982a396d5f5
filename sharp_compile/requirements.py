"""Refuses versions of torch and transformers that this package was not made for."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement


def check(*names: str) -> None:
    """Check that packages have the versions that this one was installed to need.

    Other versions would fail far from the cause, or change what is computed: graphs, masks and caches are read and
    written as these versions make them.

    Args:
        names: of packages among the requirements.

    Raises:
        ImportError: for a version out of bounds, with both.
    """
    try:
        needed = metadata.requires("sharp-compile") or []
    except metadata.PackageNotFoundError:  # run from its source folder, which pip knows nothing of
        return
    for requirement in map(Requirement, needed):
        # An extra repeats none of the requirements that are asked about.
        if requirement.name in names and requirement.marker is None:
            version = metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                raise ImportError(
                    f"{requirement.name} {version} is installed, sharp_compile needs {requirement.name}"
                    f"{requirement.specifier}: pip install '{requirement}'"
                )
