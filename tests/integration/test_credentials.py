"""Addresses and credentials: taken as other NATS programs take them, named where they are wrong, and never told."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aetherscale.bus import blocking
from aetherscale.bus.bus import BusUnavailable, NotAuthorized
from aetherscale.bus.endpoint import Endpoint, outside, parse_endpoint
from aetherscale.bus.nats import NatsBus
from tests.integration.conftest import MakeNode
from tests.support.eventually import logged
from tests.support.names import KNOWS_LOCALHOST
from tests.support.nats_jwt import Operator, creds, key
from tests.support.nats_server import NatsServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WAIT_S = 30.0
SECRET = "s3cr3t-w0rd"


@asynccontextmanager
async def server(directory: Path, **options: object) -> AsyncIterator[NatsServer]:
    running = NatsServer(directory / "store", **options)
    await running.start()
    yield running
    await running.kill()


WITH_TOKEN = {"authorization": {"token": SECRET}}
WITH_USER = {"authorization": {"user": "joe@home", "password": SECRET}}


@pytest.mark.parametrize(
    ("options", "url"),
    [
        (WITH_TOKEN, "nats://{secret}@127.0.0.1:{port}"),
        (WITH_TOKEN, "NATS://{secret}@" + ("LOCALHOST" if KNOWS_LOCALHOST else "127.0.0.1") + ":{port}"),
        (WITH_USER, "nats://joe%40home:{secret}@127.0.0.1:{port}"),
        (WITH_USER, "Nats://joe%40home:{secret}@127.0.0.1:{port}/"),
        ({}, "127.0.0.1:{port}"),
        ({}, "nats://127.0.0.1:1,nats://127.0.0.1:{port}"),
    ],
)
async def test_both_clients_get_in(tmp_path: Path, options: dict[str, object], url: str) -> None:
    async with server(tmp_path, **options) as running:
        endpoint = parse_endpoint(url.format(secret=SECRET, port=running.port))
        assert SECRET not in endpoint.url
        with blocking.connect(endpoint) as connection:
            connection.flush()
        bus = NatsBus(lambda: endpoint, name="test", clock=lambda: 0)
        await bus.start(WAIT_S)
        assert (bus.disconnected_since_us, bus.trouble) == (None, "")
        await bus.close()


async def test_an_address_of_ipv6_is_one(tmp_path: Path) -> None:
    async with server(tmp_path, host="::1") as running:
        endpoint = parse_endpoint(f"nats://[::1]:{running.port}")
        with blocking.connect(endpoint) as connection:
            assert connection.url == f"nats://[::1]:{running.port}"
        bus = NatsBus(lambda: endpoint, name="test", clock=lambda: 0)
        await bus.start(WAIT_S)
        assert bus.disconnected_since_us is None
        await bus.close()


@pytest.mark.parametrize("options", [WITH_TOKEN, WITH_USER])
@pytest.mark.parametrize("credentials", ["", "wr0ng@", "joe:wr0ng@"])
async def test_credentials_that_are_refused_are_named_as_such(
    tmp_path: Path, options: dict[str, object], credentials: str
) -> None:
    async with server(tmp_path, **options) as running:
        endpoint = parse_endpoint(f"nats://{credentials}127.0.0.1:{running.port}")
        with pytest.raises(NotAuthorized, match="Authorization Violation") as refused:
            blocking.connect(endpoint)
        assert "wr0ng" not in str(refused.value)
        bus = NatsBus(lambda: endpoint, name="test", clock=lambda: 0)
        with logged("aetherscale.bus") as said:
            await bus.start(0.01)
            # What the server says is logged first; the attempt that it ends is a trouble of the bus from then on.
            await said.until(lambda lines: any(line.startswith("cannot connect to NATS") for line in lines))
        assert "Authorization Violation" in bus.trouble
        assert not any("wr0ng" in line for line in said)
        await bus.close()


async def test_a_broker_that_takes_no_more_connections_says_so(tmp_path: Path) -> None:
    async with server(tmp_path, max_connections=1) as running:
        with blocking.connect(running.endpoint), pytest.raises(BusUnavailable, match="takes no more connections"):
            blocking.connect(running.endpoint)


async def test_a_broker_with_short_control_lines_says_so(tmp_path: Path) -> None:
    async with server(tmp_path, max_control_line=60) as running:
        bus = NatsBus(lambda: running.endpoint, name="t", clock=lambda: 0)
        with logged("aetherscale.bus") as said:
            await bus.start(0.01)
            await said.until(lambda lines: any("max_control_line is too small" in line for line in lines))
        await bus.close()


async def test_serve_and_every_command_name_refused_credentials_and_tell_no_secret(
    tmp_path: Path, make_node: MakeNode
) -> None:
    async with server(tmp_path, authorization={"user": "joe", "password": SECRET}) as running:
        node = make_node("--simulated", "--nats", f"nats://joe:wr0ng@127.0.0.1:{running.port}")
        await node.start()
        ready = next(line for line in node.output if line.startswith("ready"))
        assert "the server refuses the credentials (Authorization Violation)" in ready
        status, out, err = await node.cli("vm", "list")
        assert (status, out) == (4, "")
        assert "does not let us in" in err
        status, out, _ = await node.cli("doctor", "--json")
        findings = {finding["check"]: finding for finding in json.loads(out)}
        assert findings["nats"]["status"] == "error"
        assert "Authorization Violation" in findings["nats"]["found"]
        assert not any("wr0ng" in text for text in [*node.output, err, out])
        assert (node.state_dir / "nats.json").stat().st_mode & 0o777 == 0o600


async def test_a_token_in_the_url_is_one_for_the_node_and_its_commands(tmp_path: Path, make_node: MakeNode) -> None:
    async with server(tmp_path, **WITH_TOKEN) as running:
        node = make_node("--simulated", "--nats", f"nats://{SECRET}@127.0.0.1:{running.port}")
        await node.start()
        status, _, err = await node.cli("node", "list")
        assert (status, err) == (0, "")
        assert not any(SECRET in line for line in node.output)
        assert json.loads((node.state_dir / "nats.json").read_text())["token"] == SECRET


def test_credentials_in_a_context_file_are_taken_out_of_its_url() -> None:
    assert parse_endpoint("nats://a:b@h", "", "") == Endpoint("nats://h:4222", "a", "b")


class Way:
    """One way to prove who one is: how the server is set up, and a file with the secret for the client."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.options: dict[str, Any] = {}
        if kind == "creds":
            operator, stranger = Operator(), Operator()
            self.options = operator.options
            (self.right, self.secret), (self.wrong, _) = operator.creds(), stranger.creds()
        elif kind == "nkey":
            user = key()
            self.options = {"authorization": {"users": [{"nkey": user.public}]}}
            self.right, self.secret, self.wrong = f"{user.seed}\n", user.seed, key().seed
        else:
            self.options, self.right, self.secret, self.wrong = WITH_TOKEN, f"{SECRET}\n", SECRET, "wr0ng"


@pytest.fixture(params=["creds", "nkey", "token-file"])
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


async def test_a_secret_in_a_file_lets_both_clients_in(tmp_path: Path, way: Way) -> None:
    file = tmp_path / "secret"
    file.write_text(way.right)
    async with server(tmp_path, **way.options) as running:
        endpoint = outside(running.endpoint.url, {way.kind: str(file)})
        with blocking.connect(endpoint) as connection:
            connection.flush()
        bus = NatsBus(lambda: endpoint, name="test", clock=lambda: 0)
        await bus.start(WAIT_S)
        assert (bus.disconnected_since_us, bus.trouble) == (None, "")
        await bus.close()


async def test_a_wrong_secret_in_a_file_is_named_as_such(tmp_path: Path, way: Way) -> None:
    file = tmp_path / "secret"
    file.write_text(way.wrong)
    async with server(tmp_path, **way.options) as running:
        endpoint = outside(running.endpoint.url, {way.kind: str(file)})
        with pytest.raises(NotAuthorized, match="Authorization Violation"):
            blocking.connect(endpoint)
        bus = NatsBus(lambda: endpoint, name="test", clock=lambda: 0)
        with logged("aetherscale.bus") as said:
            await bus.start(0.01)
            await said.until(lambda lines: any(line.startswith("cannot connect to NATS") for line in lines))
        assert "the server refuses the credentials" in bus.trouble
        await bus.close()


async def test_a_node_and_its_commands_use_the_file_and_tell_no_secret(
    tmp_path: Path, way: Way, make_node: MakeNode
) -> None:
    file = tmp_path / "secret"
    file.write_text(way.right)
    async with server(tmp_path, **way.options) as running:
        node = make_node("--simulated", "--nats", running.endpoint.url, f"--nats-{way.kind}", str(file))
        await node.start()
        status, out, err = await node.cli("node", "list")
        assert (status, err) == (0, "")
        assert node.name in out
        for words in (("doctor",), ("doctor", "--json"), ("vm", "list")):
            _, out, err = await node.cli(*words)
            assert way.secret not in out + err
        assert not any(way.secret in line for line in node.output)
        assert way.secret not in Path(f"/proc/{node.pid}/cmdline").read_text()
        assert (node.state_dir / "nats.json").stat().st_mode & 0o777 == 0o600


async def test_a_password_in_the_environment_is_in_no_argument(
    tmp_path: Path, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(tmp_path, **WITH_USER) as running:
        monkeypatch.setenv("AETHERSCALE_NATS_URL", f"nats://joe%40home:{SECRET}@127.0.0.1:{running.port}")
        node = make_node("--simulated")
        await node.start()
        status, _, err = await node.cli("node", "list")
        assert (status, err) == (0, "")
        assert SECRET not in Path(f"/proc/{node.pid}/cmdline").read_text()
        monkeypatch.setenv("AETHERSCALE_NATS_URL", f"nats://joe%40home:wr0ng@127.0.0.1:{running.port}")
        status, out, err = await node.cli("vm", "list")
        assert (status, out) == (4, "")
        assert "does not let us in" in err
        assert "wr0ng" not in err


SEED = key().seed


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("creds", "", "a .creds file"),
        ("creds", SEED, "a .creds file"),
        ("creds", creds("x.y.z", "SUAAAA"), "begins with SU"),
        ("creds", creds("x.y.z", key("account").seed), "begins with SU"),
        ("nkey", "", "begins with SU"),
        ("nkey", SEED[:-1], "begins with SU"),
        ("nkey", key("account").seed, "begins with SU"),
        ("nkey", "\udcff", "text"),
        ("token-file", " \n", "one line with a token"),
        ("token-file", "a b", "one line with a token"),
        ("token-file", "x" * 70_000, "expected at most 64 KiB of text"),
    ],
    ids=[f"case {number}" for number in range(1, 12)],
)
def test_a_file_that_cannot_be_used_is_named_and_not_told(
    tmp_path: Path, kind: str, content: str, expected: str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=expected) as refused:
        outside("nats://h", {kind: str(file)})
    assert str(file) in str(refused.value)
    assert not content.strip() or content.strip() not in str(refused.value)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("pipe", "", "nothing"):
        with pytest.raises(ValueError, match="NATS"):
            outside("nats://h", {"creds": str(tmp_path / path)})


@pytest.mark.parametrize("url", ["nats://a:b@h", "nats://t0ken@h"])
def test_one_way_is_enough(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="got --nats-creds and the URL, expected one of them"):
        outside(url, {"creds": "x"})
    with pytest.raises(ValueError, match="got --nats-creds and --nats-nkey, expected one of them"):
        outside("nats://h", {"creds": "x", "nkey": "y"})


async def test_serve_refuses_what_it_could_never_use(tmp_path: Path, make_node: MakeNode) -> None:
    node = make_node()
    for words, expected in (
        (("--nats", "nats://h", "--nats-creds", str(tmp_path / "none")), "none cannot be read: No such file"),
        (("--nats-nkey", str(tmp_path)), "is for another NATS server: name it with --nats"),
    ):
        status, out, err = await node.cli("serve", "--simulated", *words)
        assert (status, out) == (2, "")
        assert expected in err
