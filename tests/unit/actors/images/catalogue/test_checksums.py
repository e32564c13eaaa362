"""The checksum of a file in what distributions publish, and never that of another one."""

from __future__ import annotations

import pytest

from aetherscale.actors.images.catalogue.sums import Digest, NoDigest, digest_in

A, B, C = "0a" * 32, "0b" * 32, "0c" * 64
NAME = "disk-12.qcow2"

FEDORA = f"""\
-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# {NAME}: 1024 bytes
SHA256 ({NAME}) = {A}
SHA256 (other.qcow2) = {B}
-----BEGIN PGP SIGNATURE-----
iQIzBAEBCAAdFiEE
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (f"{B}  other\n{A}  {NAME}\n", Digest("sha256", A)),
        (f"{A} *{NAME}\r\n", Digest("sha256", A)),
        (f"{A.upper()}  ./{NAME}\n", Digest("sha256", A)),
        (f"{C}  {NAME}\n", Digest("sha512", C)),
        (FEDORA, Digest("sha256", A)),
        (f"SHA512 ({NAME}) = {C}\n", Digest("sha512", C)),
        (f"{A}\n", Digest("sha256", A)),
        (f"{A}  {NAME}\n{C}  {NAME}\n", Digest("sha512", C)),
        (f"{A}  {NAME}\n{A}  {NAME}\n", Digest("sha256", A)),
    ],
)
def test_each_form_is_read(text: str, digest: Digest) -> None:
    assert digest_in(text.encode(), NAME) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{A}  other\n",
        f"{A}  {NAME}.asc\n",
        f"{A}  x{NAME}\n",
        f"{A}  dir/{NAME}\n",
        f"{A}\n{B}\n",
        f"{'0a' * 16}  {NAME}\n",
        f"{A[:-1]}  {NAME}\n",
        f"SHA512 ({NAME}) = {A}\n",
        f"MD5 ({NAME}) = {'0a' * 16}\n",
        f"{A}  {NAME}\n{B}  {NAME}\n",
        f"# {A}  {NAME}\n",
        "<html>not found</html>",
    ],
)
def test_what_is_not_said_is_not_guessed(text: str) -> None:
    with pytest.raises(NoDigest):
        digest_in(text.encode(), NAME)


def test_bytes_of_any_kind_are_no_mistake_of_ours() -> None:
    with pytest.raises(NoDigest):
        digest_in(bytes(range(256)) * 16, NAME)
