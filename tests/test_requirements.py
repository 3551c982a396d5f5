"""Versions out of bounds are refused by name."""

from importlib import metadata

import pytest

from sharp_compile.requirements import check

NEEDED = ["torch>=2.11.0", "transformers<5.24,>=4.57", "triton>=3.6.0; sys_platform == 'linux'"]


@pytest.fixture
def installed(monkeypatch):
    def versions(**given):
        monkeypatch.setattr(metadata, "requires", lambda _: NEEDED)
        monkeypatch.setattr(metadata, "version", given.__getitem__)

    return versions


@pytest.mark.parametrize("torch", ["2.11.0", "2.13.0+cpu", "2.14.0.dev20260101", "3.0.0"])
def test_versions_in_bounds(installed, torch):
    installed(torch=torch, transformers="5.23.1")
    check("torch", "transformers")


@pytest.mark.parametrize("version", ["4.56.2", "5.24.0"])
def test_versions_out_of_bounds(installed, version):
    installed(torch="2.13.0", transformers=version)
    with pytest.raises(ImportError, match=rf"transformers {version} is installed, sharp_compile needs transformers"):
        check("torch", "transformers")


def test_the_message_says_what_to_install(installed):
    installed(torch="2.10.1", transformers="5.23.0")
    with pytest.raises(ImportError) as error:
        check("torch", "transformers")
    assert str(error.value) == (
        "torch 2.10.1 is installed, sharp_compile needs torch>=2.11.0: pip install 'torch>=2.11.0'"
    )


def test_without_an_installation_nothing_is_known(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    check("torch")


def test_this_environment_is_in_bounds():
    check("torch", "transformers")
