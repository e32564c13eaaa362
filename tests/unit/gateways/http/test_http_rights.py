"""Who may: every row of the table × everyone who could ask. A row that this does not know fails the test."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx
import pytest

from aetherscale.gateways.http import callers, door
from aetherscale.gateways.http.callers import Peer
from aetherscale.gateways.http.routes import Role, Route, table
from tests.support.http_node import HttpNode

OPERATOR: Final = {
    "root or the node's user on the socket": None,
    "a member of the group on the socket": None,
    "a stranger on the socket": 403,
    "a page of a browser on the socket": 403,
    "the token over TCP": None,
    "the token over TCP from our own page": None,
    "no token over TCP": 401,
    "another token over TCP": 401,
    "a token that is another scheme's over TCP": 401,
    "the token for another host over TCP": 403,
    "the token for no host over TCP": 403,
    "the token from a page of another origin over TCP": 403,
    "the token from a page of no origin over TCP": 403,
}
"""By who asks: the status that refuses, or None for one who is answered as the route answers."""
ANYONE: Final = OPERATOR | dict.fromkeys(
    ("no token over TCP", "another token over TCP", "a token that is another scheme's over TCP"), None
)
RIGHTS: Final[Mapping[Role, Mapping[str, int | None]]] = {"operator": OPERATOR, "anyone": ANYONE}
ROUTES: Final[Mapping[str, Role]] = {
    "create-network": "operator",
    "delete-network": "operator",
    "list-networks": "operator",
    "network-info": "operator",
    "create-group": "operator",
    "delete-group": "operator",
    "group-actions": "operator",
    "list-groups": "operator",
    "group-info": "operator",
    "ask-explain": "operator",
    "ask-watch-drops": "operator",
    "create-vm": "operator",
    "delete-vm": "operator",
    "vm-actions": "operator",
    "patch-vm": "operator",
    "list-vms": "operator",
    "vm-info": "operator",
    "ask-vm-info": "operator",
    "ask-vm-logs": "operator",
    "ask-exec-vm": "operator",
    "ask-vm-console": "operator",
    "ask-vm-terminal": "operator",
    "ask-console-input": "operator",
    "ask-list-forwards": "operator",
    "ask-guest-info": "operator",
    "ask-vm-program": "operator",
    "import-image": "operator",
    "build-image": "operator",
    "fetch-image": "operator",
    "image-actions": "operator",
    "ask-search-images": "operator",
    "ask-inspect-image": "operator",
    "ask-export-image": "operator",
    "ask-read-image": "operator",
    "delete-image": "operator",
    "list-images": "operator",
    "image-info": "operator",
    "nodes": "operator",
    "node": "operator",
    "operation": "operator",
    "events": "operator",
    "changes": "operator",
    "state": "operator",
    "diff": "operator",
    "density": "operator",
    "why-network": "operator",
    "why-group": "operator",
    "why-vm": "operator",
    "why-image": "operator",
    "openapi": "operator",
    "problem": "operator",
    "root": "operator",
    "metrics": "operator",
    "health": "anyone",
    "readiness": "anyone",
}
"""Written down here by hand, so that a new route has to be thought about."""
STRANGER: Final = 4242
GROUP: Final = 4343


def test_every_route_has_its_row() -> None:
    assert {row.name: row.role for row in table()} == dict(ROUTES)


@pytest.mark.parametrize("who", OPERATOR)
async def test_every_route_is_for_those_that_its_row_names(
    node: HttpNode, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _as(node, who, monkeypatch) as client:
        for row in table():
            refused = RIGHTS[ROUTES[row.name]][who]
            status, headers = await _ask(client, row)
            if refused is None:
                assert status not in (401, 403), (who, row.name)
            else:
                assert status == refused, (who, row.name)
                assert headers["content-type"] == "application/problem+json"
                assert ("www-authenticate" in headers) == (status == 401)
    assert not await node.memory.events() or RIGHTS["operator"][who] is None, "a refused request has left events"


async def _ask(client: httpx.AsyncClient, row: Route) -> tuple[int, httpx.Headers]:
    path = row.template.replace(f"{{{row.parameter}}}", "none") if row.parameter else row.template
    body = b"{}" if row.takes_body else None
    headers = {"Content-Type": "application/json"} if body else {}
    async with client.stream(row.method, path, content=body, headers=headers) as answer:
        return answer.status_code, answer.headers


def _as(node: HttpNode, who: str, monkeypatch: pytest.MonkeyPatch) -> httpx.AsyncClient:
    if who.endswith("on the socket"):
        groups = {
            "a member of the group on the socket": frozenset({STRANGER, GROUP}),
            "a stranger on the socket": frozenset({STRANGER}),
        }
        if who in groups:
            monkeypatch.setattr(callers, "peer_of", lambda _: Peer(STRANGER, groups[who]))
            monkeypatch.setattr(callers, "_group", lambda: GROUP)
        return node.unix(**({"Origin": "http://evil.example"} if "page" in who else {}))
    headers = {
        "the token over TCP": {},
        "the token over TCP from our own page": {"Origin": f"http://{node.host}"},
        "no token over TCP": {"Authorization": ""},
        "another token over TCP": {"Authorization": f"Bearer {node.token[:-2]}xx"},
        "a token that is another scheme's over TCP": {"Authorization": f"Basic {node.token}"},
        "the token for another host over TCP": {"Host": f"evil.example:{node.port}"},
        "the token for no host over TCP": {"Host": ""},
        "the token from a page of another origin over TCP": {"Origin": "http://evil.example"},
        "the token from a page of no origin over TCP": {"Origin": "null"},
    }
    return node.tcp(**headers[who])


@pytest.mark.parametrize("host", ["localhost:{}", "LOCALHOST:{}", "127.0.0.1:{}"])
async def test_the_node_is_called_by_its_own_names(node: HttpNode, host: str) -> None:
    async with node.tcp(Host=host.format(node.port)) as client:
        assert (await client.get("/v1/vms")).status_code == 200


async def test_the_host_in_a_target_is_looked_at_too(node: HttpNode) -> None:
    target = (
        b"GET http://evil.example/v1/vms HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(target % (node.host.encode(), node.token.encode()))
    assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
    writer.close()


async def test_the_token_is_the_owners_alone_and_the_same_at_the_next_start(node: HttpNode) -> None:
    token, path = node.token, node.state_dir / callers.TOKEN_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert node.socket.stat().st_mode & 0o777 == door.SOCKET_MODE
    assert len(token) >= 32
    await node.restart()
    assert node.token == token
    await node.close_door()
    path.write_text("short\n")
    await node.open()
    assert len(node.token) >= 32, "one that could be guessed is made anew"


async def test_a_token_that_leads_elsewhere_is_neither_read_nor_written(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("x" * 40)
    state = tmp_path / "s"
    state.mkdir(mode=0o700)
    (state / callers.TOKEN_FILE).symlink_to(elsewhere)
    with pytest.raises(PermissionError):
        callers.token_of(state)
    assert elsewhere.read_text() == "x" * 40


@pytest.mark.parametrize(
    ("peer", "is_let_in"),
    [
        (Peer(0, frozenset({0})), True),
        (Peer(os.geteuid(), frozenset({99})), True),
        (Peer(STRANGER, frozenset({STRANGER, GROUP})), True),
        (Peer(STRANGER, frozenset({STRANGER})), False),
        (Peer(STRANGER, frozenset()), False),
    ],
)
def test_root_the_nodes_user_and_the_group_may(peer: Peer, is_let_in: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "_group", lambda: GROUP)
    assert callers.may(peer) == is_let_in
    monkeypatch.setattr(callers, "_group", lambda: None)
    assert callers.may(Peer(STRANGER, frozenset({STRANGER, GROUP}))) is False, "on a host without the group"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_kernel_says_who_connected_with_all_groups(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    tmp_path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        if (child := os.fork()) == 0:
            os.setgroups([GROUP, 5])
            # The peer is whom the socket was connected by, whatever it becomes later.
            os.setresgid(STRANGER, STRANGER, STRANGER)
            with socket.socket(socket.AF_UNIX) as connecting:
                os.chdir(tmp_path)
                connecting.connect("x.sock")
                connecting.recv(1)
            os._exit(0)
        accepted, _ = listening.accept()
        with accepted:
            peer = callers.peer_of(accepted)
        os.waitpid(child, 0)
    assert peer == Peer(0, frozenset({STRANGER, GROUP, 5}))
    assert struct.calcsize("=3i") == 12
