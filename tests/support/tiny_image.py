"""The guest that integration tests boot, built from packages that are kept between runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aetherscale.actors.images.building import tiny
from aetherscale.actors.images.building.built import BuiltImage


def build_tiny(target: Path, pytestconfig: pytest.Config) -> BuiltImage:
    """The image that `image build tiny` makes. Tests boot an overlay or a copy of it, never the file itself."""
    return asyncio.run(tiny.build(target, package_cache(pytestconfig), print))


def package_cache(pytestconfig: pytest.Config) -> Path:
    """Where packages are kept from one run to the next: in pytest's own cache."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("debian")
