"""Which node is meant where none is named: the user's own if it runs, else this host's service; how it is started."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from aetherscale import service

if TYPE_CHECKING:
    from aetherscale.settings import Settings


def is_service(settings: Settings) -> bool:
    """Whether the node of this host's service is meant.

    It is where its state directory is named or is the default, as for root. Where none is named: if the user's own node
    does not run, and the user may use the service or has never had a node.
    """
    own = settings.state_dir
    if own == service.STATE_DIR:
        return service.is_installed()
    if not settings.is_default or settings.nats_url is not None or not service.is_installed():
        return False
    return (service.is_member() or not own.exists()) and not _runs(own)


def reads_by_service(settings: Settings, *, as_the_node: bool) -> bool:
    """Whether a command that reads is run by the service's user: this one may not, or would see something else."""
    return is_service(settings) and os.geteuid() not in ((service.uid(),) if as_the_node else (0, service.uid()))


def told_in(settings: Settings) -> Path:
    """The directory in which the node that is meant says how it is reached."""
    return service.RUN_DIR if is_service(settings) and os.geteuid() != 0 else settings.state_dir


def start(settings: Settings) -> str:
    """The command that starts the node that is meant."""
    if is_service(settings):
        return service.START
    return f"aetherscale serve --state-dir {shlex.quote(str(settings.state_dir))}"


def _runs(state_dir: Path) -> bool:
    from aetherscale.bus.endpoint import read_endpoint

    try:
        return service.listens(read_endpoint(state_dir).url)
    except (OSError, ValueError):
        return False
