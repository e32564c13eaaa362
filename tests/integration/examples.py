"""The lines of examples/README.md, as they are there, with real guests of a whole Debian under emulation.

`just examples` runs this: minutes, so that it is no part of `just test`. The image has the packages already: a guest
of the namespace here reaches no archive.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.errors import NoServersError

from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from tests.integration.conftest import MakeNode
from tests.support.network_namespaces import missing, network_namespace
from tests.support.node import ROOT, RunningNode

HOST = "192.0.2.1"
PACKAGES = ("nginx", "nats-server")
README = ROOT / "examples/README.md"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(
        os.geteuid() != 0 or None in map(shutil.which, ("mmdebstrap", "dnsmasq")),
        reason="needs root, mmdebstrap and dnsmasq: apt-get install mmdebstrap dnsmasq-base",
    ),
]


def blocks() -> list[list[str]]:
    """The lines of the README's blocks of commands."""
    return [block.splitlines() for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", README.read_text())]


@pytest.fixture
async def node(make_node: MakeNode) -> AsyncIterator[RunningNode]:
    """A node with the image that the first line builds, in a namespace whose host forwards and has an address."""
    (build, *_), *_ = blocks()
    recipe = build.removeprefix("aetherscale image build ")
    node = make_node()
    await node.start()
    built = await node.task("images", "build-image", recipe=recipe, packages=list(PACKAGES))
    assert built["type"] == "result", built
    await node.stop()
    with network_namespace():
        for words in ("link set lo up", f"addr add {HOST}/32 dev lo"):
            await asyncio.to_thread(subprocess.run, ["ip", *words.split()], check=True)
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        await node.start()
        yield node
        await node.close()
        left = Resolvers(node.state_dir, node.name, lambda network_id, words: None)
        await left.start()
        await left.reconcile(())
        await left.close()


async def test_the_lines_of_the_readme_make_a_web_server_and_a_message_broker(node: RunningNode) -> None:
    (_, *lines), _ = blocks()
    for line in lines:
        program, *words = shlex.split(line.replace("examples/", f"{ROOT}/examples/"))
        assert program == "aetherscale"
        status, out, err = await node.cli(*words)
        assert status == 0, f"{line}\n{out}{err}"

    def page() -> str:
        with urllib.request.urlopen(f"http://{HOST}:8080/", timeout=60) as answer:
            return str(answer.read().decode())

    assert "This is site, which was set up at 20" in await asyncio.to_thread(page)

    broker = await nats.connect(f"nats://app:change-me@{HOST}:4222")
    stream = broker.jetstream()
    await stream.add_stream(name="orders", subjects=["orders.*"])
    await stream.publish("orders.new", b"1")
    assert (await stream.stream_info("orders")).state.messages == 1
    await broker.close()
    with pytest.raises(NoServersError):
        await nats.connect(f"nats://app:guessed@{HOST}:4222", max_reconnect_attempts=1, allow_reconnect=False)
    for name in ("site", "bus"):
        assert (await node.task("compute", "vm-info", vm_id=name))["vm"]["init"]["status"] == 0
    log = (node.state_dir / "events.db").read_bytes() + (node.state_dir / "events.db-wal").read_bytes()
    assert b"change-me" not in log
