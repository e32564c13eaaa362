"""`host setup bridge`: a bridge in the place of a device of the host; its confirmation; and the way back.

Nothing that outlives a reboot is written before the confirmation. See docs/public-bridge.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.actors.network.netlink.direct import Failed
from aetherscale.actors.network.netlink.uplink import Uplink, Uplinks
from aetherscale.gateways.cli.program import BridgeAsked, BridgeTask, Step
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.setup import bridgekeeping
from aetherscale.setup.bridgeguard import WRONG_PLACE, take_back
from aetherscale.setup.bridgeplan import holds, planned
from aetherscale.setup.bridgetrial import (
    PERIOD_S,
    Places,
    Trial,
    acting,
    begun,
    read_kept,
    read_trial,
    write_trial,
)
from aetherscale.setup.hostwork import ended, require_systemd

GUARD_UNIT: Final = "aetherscale-bridge-guard-{pid}.service"
"""One for each process that sets a bridge up: the guard of the one before may not have noticed its end yet."""
CONFIRM: Final = "aetherscale host setup bridge --confirm"
UNDO: Final = "aetherscale host setup bridge --undo"


def start_guard(places: Places) -> None:
    """Start the guard as a unit of its own, which no end of a session reaches; returns when it is ready.

    Raises `Refused`.
    """
    unit = GUARD_UNIT.format(pid=os.getpid())
    properties = (
        "Type=notify",
        "Restart=on-failure",
        "RestartSec=0",
        f"RestartPreventExitStatus={WRONG_PLACE}",
        "OOMScoreAdjust=-1000",
        "RefuseManualStop=yes",
    )
    done = ended(
        "systemd-run", "--quiet", "--collect", f"--unit={unit}", *(f"--property={each}" for each in properties),
        sys.executable, "-m", "aetherscale.setup.bridgeguard", str(places.run), str(places.kept), str(places.units),
    )  # fmt: skip
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()
        raise Refused(
            Reason.INTERNAL,
            f"host setup bridge: the guard did not start, so nothing was changed: {why}",
            remedy=f"journalctl -u {unit}",
        )


class Bridges:
    """The bridge of this host. `period_s` is how long its confirmation may take; `guard` starts a guard."""

    def __init__(
        self,
        places: Places | None = None,
        *,
        period_s: float = PERIOD_S,
        guard: Callable[[Places], None] = start_guard,
        root: Path = Path("/"),
    ) -> None:
        self._places = places or Places()
        self._period_s = period_s
        self._guard = guard
        self._root = root

    def set_up(self, asked: BridgeAsked, *, dry_run: bool) -> Iterator[Step]:
        """Let the bridge take the place of the device, on trial. Raises `Refused`; then all is as it was before."""
        what = f"{asked.bridge} has the place of {asked.device}: its addresses, routes, MAC and MTU"
        with self._acting() as uplinks:
            if self._is_there(asked, uplinks):
                yield Step(what, "already")
                return
            uplink = planned(asked, uplinks, self._root)
            if dry_run:
                yield Step(what, "to do")
                return
            self._take_over(uplink, uplinks)
        yield Step(what, "done")

    def confirm(self, *, dry_run: bool) -> Iterator[Step]:
        """Keep the bridge, now and at each boot. Raises `Refused` where none is on trial."""
        with self._acting() as uplinks:
            trial, kept = self._trial(), self._kept()
            if trial is None and kept is not None:
                yield Step(f"{kept.bridge}, at each boot", "already")
                return
            if trial is None:
                raise Refused(
                    Reason.NOT_FOUND,
                    "host setup bridge: --confirm: no bridge waits for it; one that was not confirmed in time is gone",
                    remedy="aetherscale host setup bridge --device DEVICE",
                    field="confirm",
                )
            if trial.state != "taken" or (missing := uplinks.missing(trial.uplink)):
                lacking = f": {missing[0]}" if trial.state == "taken" else ""
                raise Refused(
                    Reason.CONFLICT,
                    f"host setup bridge: --confirm: {trial.uplink.bridge} is not as it was set up{lacking}",
                    remedy=f"it is taken back by itself; at once: {UNDO}",
                    field="confirm",
                )
            if not dry_run:
                bridgekeeping.keep(trial.uplink, self._places)
                self._places.trial.unlink()
        yield Step(f"{trial.uplink.bridge}, at each boot", "to do" if dry_run else "done")

    def undo(self, *, dry_run: bool) -> Iterator[Step]:
        """Let the device be what it was before, now and at each boot. Raises `Refused`."""
        with self._acting() as uplinks:
            trial, kept = self._trial(), self._kept()
            uplink = trial.uplink if trial is not None else kept
            if uplink is None:
                yield Step("this host has no bridge of host setup", "already")
                return
            what = f"{uplink.device} has its addresses and routes itself, and {uplink.bridge} is gone"
            if dry_run:
                yield Step(what, "to do")
                return
            if trial is None:
                trial = msgspec.structs.replace(begun(self._here(uplink, uplinks), self._period_s), state="leaving")
                write_trial(self._places, trial)
                self._guard(self._places)
            take_back(trial, self._places, uplinks)
        yield Step(what, "done")

    def recorded(self) -> Uplink | None:
        """The bridge that is there, or that a boot makes; None for none."""
        trial = self._trial()
        return trial.uplink if trial is not None else self._kept()

    def _take_over(self, uplink: Uplink, uplinks: Uplinks) -> None:
        trial = begun(uplink, self._period_s)
        write_trial(self._places, trial)
        try:
            self._guard(self._places)
        except BaseException:
            self._places.trial.unlink(missing_ok=True)
            raise
        try:
            uplinks.take_over(uplink)
            if missing := uplinks.missing(uplink):
                raise Failed(0, f"it has not {missing[0]}")
            write_trial(self._places, msgspec.structs.replace(trial, state="taken"))
        except BaseException:
            # What cannot be taken back here is left to the guard.
            take_back(trial, self._places, uplinks)
            raise

    def _is_there(self, asked: BridgeAsked, uplinks: Uplinks) -> bool:
        """Whether the bridge is there as asked. Raises `Refused` where there is another one, or one on trial."""
        if (trial := self._trial()) is not None:
            if trial.state != "taken" or trial.left_s < 0:  # of a process that died before there was a guard
                self._guard(self._places)
                take_back(trial, self._places, uplinks)
                return False
            raise Refused(
                Reason.CONFLICT,
                f"host setup bridge: {trial.uplink.bridge} is on trial: {max(trial.left_s, 0):.0f} s are left",
                remedy=f"{CONFIRM}; or: {UNDO}",
            )
        kept = self._kept()
        if kept is None:
            return False
        if not holds(asked, kept) or uplinks.missing(self._here(kept, uplinks)):
            raise Refused(
                Reason.CONFLICT,
                f"host setup bridge: this host has {kept.bridge} in the place of {kept.device}, and not as asked",
                remedy=f"{UNDO}; then set it up anew. To make it again as it was: systemctl restart aetherscale-bridge",
            )
        return True

    def _here(self, uplink: Uplink, uplinks: Uplinks) -> Uplink:
        """What a boot makes, with the index that the device has now."""
        device = uplinks.device(uplink.device)
        if device is None:
            raise Refused(
                Reason.NOT_FOUND,
                f"host setup bridge: there is no device {uplink.device} any more",
                remedy=f"rename the one that it was: ip link set NAME name {uplink.device}",
            )
        return msgspec.structs.replace(uplink, index=device.link.index)

    def _trial(self) -> Trial | None:
        try:
            return read_trial(self._places)
        except ValueError as damaged:
            raise _unreadable(self._places.trial, damaged) from damaged

    def _kept(self) -> Uplink | None:
        try:
            return read_kept(self._places)
        except ValueError as damaged:
            raise _unreadable(self._places.kept, damaged) from damaged

    @contextmanager
    def _acting(self) -> Iterator[Uplinks]:
        try:
            with closing(Uplinks()) as uplinks, acting(self._places):
                yield uplinks
        except Failed as failed:
            raise Refused(
                Reason.INTERNAL,
                f"host setup bridge: the kernel refused it: {failed}; it is taken back",
                remedy="ip -d link; ip address; ip route",
            ) from failed
        except OSError as error:
            raise Refused(
                Reason.INTERNAL,
                f"host setup bridge: {error.filename or ''}: {error.strerror or error}",
                remedy=f"repair that; {UNDO}",
            ) from error


def bridge(asked: BridgeAsked | None, what: BridgeTask, *, dry_run: bool) -> Iterator[Step]:
    """On this host: set a bridge up on trial (`asked` says which), confirm it or undo it. Raises `Refused`."""
    require_systemd(
        "setup bridge",
        dry_run=False,
        instead="make the bridge with what configures the network of this host: docs/public-bridge.md",
    )
    bridges = Bridges()
    if what == "set up":
        assert asked is not None
        return bridges.set_up(asked, dry_run=dry_run)
    return bridges.confirm(dry_run=dry_run) if what == "confirm" else bridges.undo(dry_run=dry_run)


def _unreadable(path: Path, damaged: ValueError) -> Refused:
    return Refused(
        Reason.INTERNAL,
        f"host setup bridge: {path} cannot be read: {damaged}",
        remedy=f"delete it; what the host has now: ip -d link; ip address; then: {UNDO}",
    )
