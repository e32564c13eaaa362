"""The recipes by their names."""

from __future__ import annotations

from pathlib import Path

from aetherscale.actors.images.building import debianimage, tiny
from aetherscale.actors.images.building.built import BuiltImage
from aetherscale.actors.images.building.programs import Say
from aetherscale.actors.images.model.effects import BuildImage


async def build(target: Path, cache_dir: Path, say: Say, effect: BuildImage, *, now_s: float) -> BuiltImage:
    """Make the image that the effect asks for at `target`. Raises Fault, and OSError where there is no room."""
    if effect.recipe in debianimage.CODENAMES:
        return await debianimage.build(target, cache_dir, say, effect, now_s=now_s)
    return await tiny.build(target, cache_dir, say)
