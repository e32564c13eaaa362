"""How the demo fetches the page of a guest: from a server of this host, which closes."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from aetherscale.setup import demofirewall
from aetherscale.setup.democommands import Commands, Deviation

pytestmark = pytest.mark.integration
NO_PROXY = "http://127.0.0.1:1"
"""Nothing listens there."""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{demofirewall.PAGE}\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def served() -> Iterator[str]:
    """The URL of the page."""
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture(params=["curl", "python3"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The program that fetches: Python where the host has no curl."""
    name: str = request.param
    if name == "python3":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return name


def test_a_page_comes_while_it_is_served_and_not_by_a_proxy(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    aetherscale = Commands({**os.environ, "http_proxy": NO_PROXY, "HTTP_PROXY": NO_PROXY})
    with served() as url:
        fetch = demofirewall.fetching(url)
        demofirewall.expect_the_page(aetherscale, fetch)
        with pytest.raises(Deviation, match="the page came, though no group lets it in"):
            demofirewall.expect_no_page(aetherscale, fetch)
    shown = capfd.readouterr().out.strip()
    assert shown.startswith(f"$ {program} ")
    assert url in shown
    assert shown.count(demofirewall.PAGE) == 2
    demofirewall.expect_no_page(aetherscale, fetch)
    why = capfd.readouterr().out.strip().splitlines()[-1]
    assert "refused" in why or "Failed to connect" in why, why


def test_the_port_of_the_demo_is_free() -> None:
    assert demofirewall.free_port() > 0
    with closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", demofirewall.HOST_PORT))
        except OSError:
            pass  # Another program has it, which is as good here.
        else:
            sock.listen()
        assert demofirewall.free_port() not in (0, demofirewall.HOST_PORT)
