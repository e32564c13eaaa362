"""Downloads over TLS: who is trusted, and that nothing leads from there to plain HTTP."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.fetching import (
    CONTENT,
    ETAG,
    SHA256,
    bring,
    cancelled_midway,
    failure,
    no_proxy,
    part,
    stalls_midway,
)
from tests.support.http_server import http_server, says, serves

__all__ = ["no_proxy", "part"]

pytestmark = pytest.mark.integration


@pytest.fixture
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """What a server needs whose certificate nobody knows, and that certificate."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
class TestTls:
    async def test_a_certificate_that_nobody_trusts_is_not_trusted_here(
        self, part: Path, tls: tuple[ssl.SSLContext, Path]
    ) -> None:
        async with http_server(serves(CONTENT), tls=tls[0]) as server:
            failed = await failure(server.url(), part)
        assert "certificate is not trusted" in failed.reason
        assert not failed.retryable
        assert server.asked == []

    async def test_a_trusted_server_is_read_and_a_stall_ends_with_the_download(
        self, part: Path, tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
        async with http_server(stalls_midway, serves(CONTENT, etag=ETAG), tls=tls[0]) as server:
            await cancelled_midway(server.url(), part)
            assert (await bring(server.url(), part)).sha256 == SHA256

    async def test_nothing_leads_from_https_to_http(
        self, part: Path, tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
        async with http_server(serves(CONTENT)) as plain:
            moved = says("302 Found", {"Location": plain.url()})
            async with http_server(moved, tls=tls[0]) as server:
                failed = await failure(server.url(), part)
        assert "from https to http" in failed.reason
        assert plain.asked == []
