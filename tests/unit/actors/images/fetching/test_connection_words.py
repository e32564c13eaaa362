"""Why a connection failed: in words for people, never in those of the library."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from pathlib import Path

import pytest

from aetherscale.actors.images.fetching import web, words
from aetherscale.actors.images.fetching.transfer import Limits, Transfer
from tests.support.fetching import LOOPBACK
from tests.support.nats_server import free_port

LIBRARY = ("Errno", "urlopen", "http.client", "IncompleteRead", "bytes read", "_ssl.c", "SSL:", "Remote end", "cast")


@pytest.mark.parametrize(
    ("error", "said", "remedy"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no address for the name", "getent hosts"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "no name server answered", "getent hosts"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "nothing listens at h, port 80", "right"),
        (TimeoutError("timed out"), "h, port 80, took no connection within 3 s", "ip route"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "this host has no way to h, port 80", "ip route"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "this host has no way to h, port 80", "ip route"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files", ""),
        (OSError("nonsense of some library"), "did not say why", ""),
    ],
)
def test_a_server_that_is_not_reached(error: OSError, said: str, remedy: str) -> None:
    trouble = words.to_connect(error, "h", 80, 3)
    assert said in trouble.what
    assert remedy in trouble.remedy
    assert not [each for each in LIBRARY if each in trouble.what]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError("timed out"), "the server said nothing for 3 s"),
        (http.client.RemoteDisconnected("Remote end closed"), "the server closed it without an answer"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "the server broke it off"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "the server broke it off"),
        (http.client.IncompleteRead(b"", 5), "the server ended it too early"),
        (http.client.BadStatusLine("SSH-2.0"), "what the server says is no HTTP"),
        (http.client.LineTooLong("status line"), "what the server says is no HTTP"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol (_ssl.c:1007)"), "the server broke it off"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong (_ssl.c:1)"), "does not speak TLS as it should"),
    ],
)
def test_a_server_that_does_not_answer_as_one(error: OSError | http.client.HTTPException, said: str) -> None:
    trouble = words.talking(error, 3)
    assert said in trouble.what
    assert not [each for each in LIBRARY if each in trouble.what]


@pytest.mark.parametrize(
    "url", ["http://h:x/i", "http://h:99999/i", "http://[::1/i", "http:///i", f"http://{'a' * 70}/i", "http://a..b/i"]
)
def test_what_is_no_address_is_told_with_what_is_one(url: str, tmp_path: Path) -> None:
    transfer = Transfer(tmp_path / "part", 1, lambda done, total: None)
    with pytest.raises(web.NoAddress) as refused:
        web.get(url, {}, transfer, Limits(networks=LOOPBACK))
    assert "http" in str(refused.value)
    assert not [each for each in LIBRARY if each in str(refused.value)]


def test_a_port_that_nothing_listens_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    port = free_port()
    transfer = Transfer(tmp_path / "part", 1, lambda done, total: None)
    with pytest.raises(web.ServerError) as failed:
        web.get(f"http://127.0.0.1:{port}/i", {}, transfer, Limits(networks=LOOPBACK))
    assert str(failed.value) == f"nothing listens at 127.0.0.1, port {port}"
    assert "does its server run?" in failed.value.remedy
