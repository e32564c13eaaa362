"""A guest in a QEMU of the test's own, driven by hand, to show what an image does: no driver of ours is in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

PATIENCE_S = 90.0
"""How long anything may take on a machine that is busy with other tests."""


class Guest:
    """A running guest: its serial line, its QMP monitor, and its virtio ports by the names of their sockets."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path, qmp: QMPClient) -> None:
        self.process = process
        self.directory = directory
        self.qmp = qmp
        self.said = ""
        self._serial: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._connections: list[asyncio.StreamWriter] = []

    async def attach(self) -> None:
        """Accept the monitor, connect to the serial line, which is there by then, and let the guest run."""
        async with asyncio.timeout(PATIENCE_S):
            await self.qmp.accept()
        self._serial = await asyncio.open_unix_connection(self.directory / "serial")
        await self.qmp.execute("cont")

    async def expect(self, text: str) -> str:
        """What the serial line says until `text`, which has not been looked at before."""
        assert self._serial is not None
        async with asyncio.timeout(PATIENCE_S):
            while text not in self.said:
                data = await self._serial[0].read(4096)
                assert data, f"the serial line ended without {text!r}, after: {self.said}"
                self.said += data.decode(errors="replace")
        before, _, self.said = self.said.partition(text)
        return before

    async def prompt(self) -> None:
        """Wait for the shell's prompt."""
        await self.expect("tiny:~# ")

    async def type(self, line: str) -> None:
        """Type a line, and do not wait for anything."""
        assert self._serial is not None
        self._serial[1].write(line.encode() + b"\n")

    async def run(self, command: str) -> str:
        """What a command prints in the shell, from its prompt to the next one."""
        # The echo of the line that was typed has the quotes, so that it is not taken for the output.
        await self.type(f'echo "BEG""IN"; {command}; echo "EN""D"')
        await self.expect("BEGIN\r\n")
        printed = await self.expect("END\r\n")
        await self.prompt()
        return printed.replace("\r\n", "\n")

    async def connect(self, socket: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the host's side of a virtio port: `ready` or `agent`."""
        reader, writer = await asyncio.open_unix_connection(self.directory / socket)
        self._connections.append(writer)
        return reader, writer

    async def ready(self) -> None:
        """Connect to the ready channel, ask, and be told."""
        reader, writer = await self.connect("ready")
        writer.write(b"?\n")
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readline() == b"ready\n"
        await self.hang_up()

    async def event(self, name: str) -> dict[str, Any]:
        """The data of the next QMP event of this name."""
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self.qmp.events.get())["event"] != name:
                pass
        data = event.get("data", {})
        assert isinstance(data, dict)
        return data

    async def send_to_agent(self, command: str, **arguments: object) -> asyncio.StreamReader:
        """Put the guest agent in step, and send it a command; where its answer will come."""
        reader, writer = await self.connect("agent")
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": 4711}}
        writer.write(b"\xff" + json.dumps(sync).encode() + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"\xff")
            assert json.loads(await reader.readline())["return"] == 4711
        writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        await writer.drain()
        return reader

    async def agent(self, command: str, **arguments: object) -> Any:
        """What the guest agent answers to a command."""
        reader = await self.send_to_agent(command, **arguments)
        async with asyncio.timeout(PATIENCE_S):
            answer = json.loads(await reader.readline())
        assert "return" in answer, answer
        await self.hang_up()
        return answer["return"]

    async def close(self) -> None:
        """Close everything that a connection was made to."""
        if self._serial is not None:
            self._connections.append(self._serial[1])
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close every connection to a virtio port."""
        while self._connections:
            writer = self._connections.pop()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def arguments(
    image: Path,
    directory: Path,
    *,
    image_format: str = "raw",
    memory_mib: int = 192,
    ports: tuple[str, ...] = ("ready", "agent"),
    firmware: Path | None = None,
) -> list[str]:
    """QEMU's arguments, after its name, for a q35 machine that boots `image` and cannot leave the test.

    Without `firmware` it boots by a BIOS.
    """
    names = {"ready": "org.aetherscale.ready.0", "agent": "org.qemu.guest_agent.0"}
    disk = {"driver": image_format, "node-name": "disk", "file": {"driver": "file", "filename": str(image)}}
    channels: list[str] = []
    for port in ports:
        channels += ["-chardev", f"socket,id={port},path={directory / port},server=on,wait=off"]
        channels += ["-device", f"virtserialport,chardev={port},name={names[port]}"]
    return [
        *("-machine", "q35,accel=tcg", "-m", str(memory_mib), "-nodefaults", "-no-user-config", "-display", "none"),
        *("-action", "shutdown=pause,panic=pause"),
        *("-blockdev", json.dumps(disk), "-device", "virtio-blk-pci,drive=disk"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "pvpanic-pci", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci", *channels),
        *(() if firmware is None else ("-bios", str(firmware))),
        *("-qmp", f"unix:{directory / 'qmp'}"),
        *("-serial", f"unix:{directory / 'serial'},server=on,wait=off", "-S"),
    ]


@asynccontextmanager
async def boot(image: Path, directory: Path, **options: Any) -> AsyncIterator[Guest]:
    """A guest that boots `image`, gone at the end whatever happens, as it is when this process dies."""
    directory.mkdir()
    qmp = QMPClient("test")
    await qmp.start_server(str(directory / "qmp"))
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig=KILL", "qemu-system-x86_64"),
        *arguments(image, directory, **options),
        stdin=asyncio.subprocess.DEVNULL,
    )
    guest = Guest(process, directory, qmp)
    try:
        await guest.attach()
        yield guest
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await guest.close()
        with suppress(EOFError):
            await qmp.disconnect()
