"""Public keys of SSH as strangers write them: taken in one form, or refused without a word of what they were."""

from __future__ import annotations

import base64

import pytest

from aetherscale.actors.compute.model.sshkeys import authorized_keys, parse_keys
from aetherscale.kernel.errors import Reason, Refused


def key(kind: str = "ssh-ed25519", *, says: str | None = None, body: bytes = b"\0\0\0\x20" + b"k" * 32) -> str:
    """A key of a type that says of itself that it is of one."""
    said = (kind if says is None else says).encode()
    return f"{kind} {base64.b64encode(len(said).to_bytes(4, 'big') + said + body).decode()}"


OTHER = key(body=b"other")


@pytest.mark.parametrize(
    "kind",
    ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "sk-ssh-ed25519@openssh.com"],
)
def test_keys_of_the_types_of_openssh_are_taken(kind: str) -> None:
    assert parse_keys([key(kind)]) == [key(kind)]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (f"{key()} joe@host", f"{key()} joe@host"),
        (f"  {key()} joe's key, of 2026 \n", f"{key()} joe's key, of 2026"),
        (f"{key()} J\u00f6rg", f"{key()} J\u00f6rg"),
        (f"{key()} ", key()),
    ],
)
def test_a_comment_is_kept(line: str, kept: str) -> None:
    assert parse_keys([line]) == [kept]


def test_a_file_of_keys_has_one_on_each_line() -> None:
    assert authorized_keys([f"{key()} a", OTHER]) == f"{key()} a\n{OTHER}\n".encode()
    assert authorized_keys([]) == b""


SECRET = "b3BlbnNzaC1rZXktdjEAAAAA"
BAD = [
    ("", "got what is no public key of SSH"),
    ("ssh-ed25519", "got what is no public key of SSH"),
    ("joe@host", "got what is no public key of SSH"),
    (SECRET, "got what is no public key of SSH"),
    (f'command="{SECRET}" {key()}', "got what is no public key of SSH"),
    (f"from=10.0.0.0/8 {key()}", "got what is no public key of SSH"),
    (f"{key()}\n{OTHER}", "got what is no public key of SSH"),
    (f"{key()} joe\nroot", "got what is no public key of SSH"),
    (f"{key()} joe\0", "got what is no public key of SSH"),
    (f"{key()} joe\u2028x", "got what is no public key of SSH"),
    (f"-----BEGIN OPENSSH PRIVATE KEY----- {SECRET}", "got a private key"),
    (key("ssh-dss"), "got a key of the type 'ssh-dss'"),
    (key("ssh-ed25519-cert-v01@openssh.com"), "got a key of the type 'ssh-ed25519-cert-v01@openssh.com'"),
    (key(says="ssh-rsa"), "got a key of the type ssh-ed25519 that is damaged"),
    (key(says="ssh-ed2551"), "got a key of the type ssh-ed25519 that is damaged"),
    (key(body=b""), "got a key of the type ssh-ed25519 that is damaged"),
    ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5A", "got a key of the type ssh-ed25519 that is damaged"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_what_is_no_public_key_is_refused_and_not_repeated(line: str, words: str) -> None:
    with pytest.raises(Refused) as raised:
        parse_keys([OTHER, line])
    assert (raised.value.reason, raised.value.field, raised.value.message) == (Reason.BAD_REQUEST, "ssh-keys", words)
    assert SECRET not in str(vars(raised.value))


def test_one_that_is_given_twice_is_refused_whatever_its_comment() -> None:
    with pytest.raises(Refused, match="twice"):
        parse_keys([f"{key()} a", OTHER, f"{key()} b"])
