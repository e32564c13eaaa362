"""Where a broker is, as users write it and as clients read it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from aetherscale.bus.endpoint import Endpoint, parse_endpoint, read_endpoint, write_endpoint


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://127.0.0.1:4333", Endpoint("nats://127.0.0.1:4333")),
        ("nats://broker", Endpoint("nats://broker:4222")),
        ("broker", Endpoint("nats://broker:4222")),
        ("broker:4333", Endpoint("nats://broker:4333")),
        ("tls://u:p@broker", Endpoint("tls://broker:4222", "u", "p")),
        ("nats://u%40x:p%2Fq@[::1]:4333", Endpoint("nats://[::1]:4333", "u@x", "p/q")),
        ("nats://t0ken@h", Endpoint("nats://h:4222", token="t0ken")),
        ("NATS://u:@H", Endpoint("nats://h:4222", "u")),
        ("Tls://t%3Ak%2Cn@h", Endpoint("tls://h:4222", token="t:k,n")),
        ("nats://a@h,nats://a@i", Endpoint("nats://h:4222,nats://i:4222", token="a")),
        ("nats://u:p@ss@h", Endpoint("nats://h:4222", "u", "p@ss")),
        ("nats://[fe80::1%25eth0]:1", Endpoint("nats://[fe80::1%eth0]:1")),
        ("nats://u:p@one, two:4333", Endpoint("nats://one:4222,nats://two:4333", "u", "p")),
    ],
)
def test_a_url_gives_up_its_credentials(url: str, expected: Endpoint) -> None:
    assert parse_endpoint(url) == expected


def test_credentials_beside_the_url_count_more() -> None:
    assert parse_endpoint("nats://u:p@broker", "other", "word") == Endpoint("nats://broker:4222", "other", "word")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://u:secret@broker",
        "nats://",
        "nats://u:secret@",
        "nats://u:secret@h:x",
        "a,,b",
        "nats://u:sec/secret@h",
        "nats://u:sec?secret@h",
        "nats://u:sec#secret@h",
        "nats://u:se,secret@h",
        "nats://u:1,secret@h",
        "nats://:secret@h",
        "nats://u:secret@::1:4222",
        "nats://u:secret@h:0",
        "nats://u:secret@h:99999",
        "nats://u:se cret@h",
        "nats://u:sec\nret@h",
        "nats://u:secret@h\x00",
        "ws://secret@h",
        "nats://u:secret@h,nats://v:secret@i",
        "nats://u:secret@[::1",
        "secret@h@",
        "nats://u:secret@h!",
    ],
)
def test_what_is_no_broker_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is what is looked at
        parse_endpoint(url)
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(refused.value.__cause__)


def test_what_is_written_is_read_and_is_a_context_of_the_nats_program(tmp_path: Path) -> None:
    endpoint = Endpoint("nats://h:1", "operator", "p", "a node")
    write_endpoint(tmp_path, endpoint)
    assert read_endpoint(tmp_path) == endpoint
    assert (tmp_path / "nats.json").stat().st_mode & 0o777 == 0o600
    assert msgspec.json.decode((tmp_path / "nats.json").read_bytes()) == {
        "url": "nats://h:1", "user": "operator", "password": "p", "description": "a node",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "nats.json"]


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "nats.json").write_text("{")
    with pytest.raises(ValueError, match="delete it and restart the node"):
        read_endpoint(tmp_path)
    (tmp_path / "nats.json").unlink()
    with pytest.raises(FileNotFoundError):
        read_endpoint(tmp_path)


def test_credentials_in_the_url_of_a_file_are_taken_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "nats.json").write_text('{"url": "nats://joe:secret@h", "description": "by hand"}')
    assert read_endpoint(tmp_path) == Endpoint("nats://h:4222", "joe", "secret", "by hand")
    (tmp_path / "nats.json").write_text('{"url": "nats://joe:sec/secret@h"}')
    with pytest.raises(ValueError, match="delete it and restart") as refused:
        read_endpoint(tmp_path)
    assert "secret" not in str(refused.value)
