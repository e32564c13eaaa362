"""The entry of the command line: hands it what it sets going. What stands behind each is imported only when needed."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AsyncExitStack
    from pathlib import Path

    from aetherscale.gateways.cli.program import BridgeAsked, BridgeTask, Program, Ready, Step
    from aetherscale.kernel.findings import Finding
    from aetherscale.kernel.registry import Kind
    from aetherscale.settings import Settings

SEARCH_AFTER = 100_000
"""How many new objects there are before garbage is searched for: most commands end with less, and the searches of
Python's own threshold take a tenth of their time."""
OPEN_FILES = 65_536
"""The number of files that a node may have open, where the host allows it."""
PRIVATE = 0o077
"""The umask of a node: whatever it or a program of its makes is for its owner alone."""
INTERRUPTED = 130
"""The exit status that a shell expects of a program that was ended by Ctrl-C."""
ENDING = (signal.SIGTERM, signal.SIGHUP)
PYTHONS_OWN = gc.get_threshold()


def main() -> int:
    """`aetherscale WORDS…`; answers with the exit status."""
    stand_in_for_closed_descriptors()
    return _briefly(_nested)


def flat() -> int:
    """`aetherscale-cli WORDS…`, the flat verbs of the first version; answers with the exit status."""
    stand_in_for_closed_descriptors()
    return _briefly(_flat)


def _nested() -> int:
    from aetherscale.gateways.cli.main import run

    return run(sys.argv[1:], program())


def _flat() -> int:
    from aetherscale.gateways.cli.flat import run_flat

    return run_flat(sys.argv[1:], program())


def stand_in_for_closed_descriptors() -> None:
    """Open /dev/null as 0, 1 and 2 where they are closed: what is opened next would be taken for the terminal."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free is the one that is given.
            # A stdout for reading alone: writing to one that was closed has to fail, as it would have.
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY if descriptor == 1 else os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _briefly(work: Callable[[], int]) -> int:
    """Run without searches for garbage, as far as possible; the last ones would be at the end of the process.

    Nothing is imported before this, so that Ctrl-C is heard in good order while what is needed is imported.
    """
    try:
        from aetherscale.gateways.cli.standard import install

        gc.set_threshold(SEARCH_AFTER)
        install()
        end_in_order()
        return work()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        for number in ENDING:
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_DFL)
        # What is left is Python's own end, which has nothing to say of a Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.freeze()
        gc.set_threshold(*PYTHONS_OWN)


def end_in_order() -> None:
    """Have SIGTERM and SIGHUP end the program as Ctrl-C does, with whatever was begun taken back: with 128 and their
    number as exit status. One that is ignored, as under nohup(1), stays so.
    """
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def program() -> Program:
    """The `Program` of the command line."""
    from aetherscale import __version__
    from aetherscale.gateways.cli.program import Program

    return Program(
        version=__version__,
        environ=os.environ,
        now_us=_now_us,
        new_token=_new_token,
        new_epoch=_new_epoch,
        kinds=_kinds,
        serve=_serve,
        doctor=_doctor,
        look_into=_look_into,
        set_up=_set_up,
        take_out=_take_out,
        bridge=_bridge,
        demo=_demo,
    )


def _now_us() -> int:
    from aetherscale.identifiers import now_us

    return now_us()


def _new_token() -> str:
    from aetherscale.identifiers import new_id

    return new_id()


def _new_epoch() -> str:
    from aetherscale.identifiers import new_epoch

    return new_epoch()


def _kinds() -> tuple[Kind[Any], ...]:
    from aetherscale.components import kinds

    return kinds()


def _serve(settings: Settings, on_ready: Callable[[Ready], None]) -> None:
    import asyncio
    import logging

    from aetherscale import service, shortage
    from aetherscale.bus.embedded import EmbeddedServerError
    from aetherscale.components import components
    from aetherscale.eventstore.store import Locked, StoreError
    from aetherscale.kernel.errors import Reason, Refused
    from aetherscale.runtime.app import run_node
    from aetherscale.statedir import NotOurs

    if service.is_state(settings.state_dir) and os.geteuid() != service.uid():
        raise Refused(
            Reason.CONFLICT,
            f"serve: {settings.state_dir} is for the node of this host's service, which runs as {service.USER}",
            remedy=f"{service.START if service.is_installed() else 'aetherscale host setup'}; "
            "for a node of your own: aetherscale serve --state-dir DIR",
        )
    os.umask(PRIVATE)
    _allow_open_files()
    sys.unraisablehook = sys.__unraisablehook__  # a node has a log, which is read by who mends it
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # It calls every end of a connection an error; what such an end means is said by the driver.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

    def ready(told: Ready) -> None:
        gc.freeze()  # what a node begins with stays; no search need walk through it again
        gc.set_threshold(*PYTHONS_OWN)
        on_ready(told)

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run_node(components(), settings, ready, doors=[_Http()] if settings.http else []))
    except Locked as error:
        raise Refused(Reason.CONFLICT, f"serve: {error}") from error
    except (StoreError, EmbeddedServerError) as error:
        raise Refused(Reason.INTERNAL, str(error), remedy="aetherscale doctor") from error
    except NotOurs as error:
        raise Refused(
            Reason.INTERNAL,
            f"serve: the state directory cannot be used: {error.filename}: {error.strerror}",
            remedy=error.hint,
        ) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Refused(
            Reason.INTERNAL,
            f"serve: the state directory {settings.state_dir} cannot be used: {where}{error.strerror or error}",
            remedy=shortage.hint_of(error.errno) or "aetherscale doctor; or give another --state-dir DIR",
        ) from error
    except RuntimeError as error:
        if not shortage.lacks_threads(error):
            raise
        raise Refused(Reason.INTERNAL, f"serve: {shortage.THREADS}", remedy=shortage.MORE_THREADS) from error
    except ValueError as error:
        raise Refused(Reason.BAD_REQUEST, str(error)) from error


class _Http:
    """HTTP as a door of the node, whose code is loaded while the node waits for its broker."""

    def __init__(self) -> None:
        self._door: Any = None

    def prepare(self) -> None:
        """As in `Door`."""
        from aetherscale.gateways.http.door import HttpDoor

        self._door = HttpDoor()

    async def open(self, inside: Any, settings: Settings, stack: AsyncExitStack) -> Mapping[str, str]:
        """As in `Door`."""
        opened: Mapping[str, str] = await self._door.open(inside, settings, stack)
        return opened

    @property
    def trouble(self) -> str:
        """As in `Door`."""
        return str(self._door.trouble) if self._door is not None else ""


def _allow_open_files() -> None:
    """Each VM takes six; the usual limit is for programs that use `select`, and any user may raise it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))


def _loop_factory() -> Callable[[], AbstractEventLoop] | None:
    """uvloop's, where it is installed; None for Python's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _doctor(settings: Settings) -> tuple[Finding, ...]:
    from aetherscale.setup.doctor import examine

    return examine(settings)


def _look_into(path: Path) -> dict[str, Any]:
    import msgspec

    from aetherscale.actors.images.files.contents import look_into

    found: dict[str, Any] = msgspec.to_builtins(look_into(path))
    return found


def _set_up(dry_run: bool, networks: bool) -> Iterator[Step]:
    from aetherscale.setup.hostsetup import set_up

    return set_up(dry_run=dry_run, networks=networks)


def _take_out(dry_run: bool, purge: bool, kill: bool) -> Iterator[Step]:
    from aetherscale.setup.hostremoval import take_out

    return take_out(dry_run=dry_run, purge=purge, kill=kill)


def _bridge(asked: BridgeAsked | None, task: BridgeTask, dry_run: bool) -> Iterator[Step]:
    from aetherscale.setup.hostbridge import bridge

    return bridge(asked, task, dry_run=dry_run)


def _demo() -> int:
    from aetherscale.setup.demo import demo

    return demo()


if __name__ == "__main__":
    sys.exit(main())
