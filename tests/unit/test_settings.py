"""The settings: flags over environment over file over defaults, and what is said of a wrong one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aetherscale.kernel.errors import Reason, Refused
from aetherscale.settings import load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "aetherscale.toml"


def load(flags: dict[str, Any] | None = None, **environ: str) -> Any:
    return load_settings(flags or {}, environ)


class TestPrecedence:
    def test_a_flag_stands_over_the_environment_over_the_file_over_the_default(self, file: Path) -> None:
        environ = {"AETHERSCALE_CONFIG": str(file)}
        file.write_text("")
        assert load({}, **environ).accelerator == "auto"
        file.write_text('accelerator = "tcg"')
        assert load({}, **environ).accelerator == "tcg"
        assert load({}, AETHERSCALE_ACCELERATOR="kvm", **environ).accelerator == "kvm"
        assert load({"accelerator": "auto"}, AETHERSCALE_ACCELERATOR="kvm", **environ).accelerator == "auto"

    def test_every_setting_can_stand_in_every_place(self, file: Path) -> None:
        file.write_text(
            'state-dir = "/s"\nnode = "n"\nnats = "nats://h"\ntenant = "t"\naccelerator = "tcg"\nsimulated = true\n'
            'stream-max-bytes = "64M"\nhttp = "[::1]:80"\n'
            'cache-dir = "/c"\n'
            'image-dirs = ["/i", "/j/k"]\nimage-networks = ["10.0.0.0/8", "::1/128"]\n'
            'public-bridge = "lan"\n'
        )
        from_file = load({"config": str(file)})
        from_environment = load(
            AETHERSCALE_STATE_DIR="/s",
            AETHERSCALE_NODE="n",
            AETHERSCALE_NATS="nats://h",
            AETHERSCALE_TENANT="t",
            AETHERSCALE_ACCELERATOR="tcg",
            AETHERSCALE_SIMULATED="yes",
            AETHERSCALE_STREAM_MAX_BYTES="67108864",
            AETHERSCALE_HTTP="[::1]:80",
            AETHERSCALE_CACHE_DIR="/c",
            AETHERSCALE_IMAGE_DIRS="/i:/j/k/",
            AETHERSCALE_IMAGE_NETWORKS="10.0.0.0/8, ::1",
            AETHERSCALE_PUBLIC_BRIDGE="lan",
        )
        from_flags = load(
            {
                "state-dir": "/s",
                "node": "n",
                "nats": "nats://h",
                "tenant": "t",
                "accelerator": "tcg",
                "simulated": True,
                "stream-max-bytes": "64MiB",
                "http": "[::1]:80",
                "cache-dir": "/c",
                "image-dirs": "/i:/j/k",
                "image-networks": "10.0.0.0/8,::1/128",
                "public-bridge": "lan",
            }
        )
        assert from_file == from_environment == from_flags
        assert from_file.image_dirs == (Path("/i"), Path("/j/k"))
        assert [str(network) for network in from_file.image_networks] == ["10.0.0.0/8", "::1/128"]
        assert from_file.nats_url == "nats://h"
        assert from_file.stream_max_bytes == 64 * 1024**2
        assert str(from_file.http) == "[::1]:80"

    def test_http_is_open_on_the_loopback_unless_it_is_closed(self) -> None:
        assert str(load().http) == "127.0.0.1:8470"
        assert str(load({"http": "localhost:0"}).http) == "127.0.0.1:0"
        assert str(load({"http": "127.255.3.4:65535"}).http) == "127.255.3.4:65535"
        assert load({"no-http": True}, AETHERSCALE_HTTP="127.0.0.1:1").http is None
        assert load({"no-http": True, "http": "127.0.0.1:1"}).http is None
        assert load(AETHERSCALE_HTTP="none").http is None

    @pytest.mark.parametrize(
        ("http", "reason"),
        [
            ("0.0.0.0:8470", Reason.NOT_IMPLEMENTED),
            ("[::]:8470", Reason.NOT_IMPLEMENTED),
            ("[fe80::1]:8470", Reason.NOT_IMPLEMENTED),
            ("10.0.0.1:8470", Reason.NOT_IMPLEMENTED),
            ("127.0.0.1.evil.example:8470", Reason.NOT_IMPLEMENTED),
            ("127.0.0.256:8470", Reason.NOT_IMPLEMENTED),
            ("host:8470", Reason.NOT_IMPLEMENTED),
            ("127.0.0.1", Reason.BAD_REQUEST),
            ("127.0.0.1:", Reason.BAD_REQUEST),
            ("127.0.0.1:65536", Reason.BAD_REQUEST),
            ("::1:8470", Reason.BAD_REQUEST),
            (":8470", Reason.BAD_REQUEST),
            ("http://127.0.0.1:8470", Reason.BAD_REQUEST),
            ("127.0.0.1:8470\n", Reason.BAD_REQUEST),
        ],
    )
    def test_http_is_open_nowhere_else(self, http: str, reason: Reason) -> None:
        with pytest.raises(Refused) as refused:
            load({"http": http})
        assert (refused.value.reason, refused.value.field) == (reason, "http")

    def test_what_was_not_given_is_not_taken_for_a_value(self) -> None:
        assert load({"simulated": False, "node": None}, AETHERSCALE_SIMULATED="1", AETHERSCALE_NODE="n").simulated
        assert load({"node": None}, AETHERSCALE_NODE="n").node == "n"

    def test_the_state_is_in_the_xdg_state_home_or_for_root_in_the_systems(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert load(HOME="/home/u").state_dir == Path("/home/u/.local/state/aetherscale")
        assert load(HOME="/home/u", XDG_STATE_HOME="/x").state_dir == Path("/x/aetherscale")
        assert load(HOME="/home/u", XDG_STATE_HOME="x").state_dir == Path("/home/u/.local/state/aetherscale")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert load(HOME="/root", AETHERSCALE_CONFIG=os.devnull).state_dir == Path("/var/lib/aetherscale")

    def test_a_relative_state_directory_is_made_absolute(self) -> None:
        assert load({"state-dir": "state"}).state_dir == Path.cwd() / "state"


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('stat-dir = "/s"', "no such setting: 'stat-dir'"),
            ("state-dir = 1", "got 1, expected text"),
            ('node = "Host 1"', "expected a name other than 'sys': lower-case letters a-z, digits and dashes"),
            ('tenant = "sys"', "got 'sys'"),
            ('accelerator = "hvf"', "expected one of auto, kvm, tcg"),
            ('supervisor = "runit"', "expected one of auto, systemd, detached"),
            ('simulated = "perhaps"', "expected true or false"),
            ("simulated = 1", "got 1, expected true or false"),
            ("state-dir", "is not TOML"),
            ("stream-max-bytes = 1000", "got 1000, expected a number of bytes, or a size like 512M; at least 16M"),
            ('stream-max-bytes = "1X"', "got '1X'"),
            ("image-dirs = 5", "got 5, expected texts with ':' between, or in a file a list of texts"),
            ('image-dirs = ["/a", 5]', "expected texts with ':' between"),
            ('image-networks = "10.0.0.1/8"', "has host bits set, expected networks like 10.0.0.0/8"),
            ('public-bridge = "a bridge"', "got 'a bridge', expected the name of a network device"),
            ('public-bridge = ".."', "expected the name of a network device"),
            ('image-networks = "anywhere"', "expected networks like 10.0.0.0/8"),
            ("stream-max-bytes = true", "got True"),
        ],
    )
    def test_a_wrong_setting_is_named_with_its_place(self, file: Path, text: str, said: str) -> None:
        file.write_text(text)
        with pytest.raises(Refused) as refused:
            load({"config": str(file)})
        assert refused.value.reason == Reason.BAD_REQUEST
        assert said in refused.value.message
        assert str(file) in refused.value.message

    def test_a_file_that_was_asked_for_has_to_be_there(self, file: Path) -> None:
        with pytest.raises(Refused, match="there is no file"):
            load({"config": str(file)})

    def test_a_wrong_variable_is_named(self) -> None:
        with pytest.raises(Refused, match="AETHERSCALE_SIMULATED: got 'maybe'"):
            load(AETHERSCALE_SIMULATED="maybe")
