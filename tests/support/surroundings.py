"""What a program may be started in, and every command line of the tree, to be run in each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from tests.support.command_lines import commands

ENDLESS = ("events tail", "firewall watch", "vm console")
"""Goes on until somebody ends it."""
HEAVY = ("demo", "image build", "serve")
"""Boots guests, downloads, or is a node of its own."""
BYTES = os.fsdecode(b"x\xff")
"""A word that is no UTF-8."""


class Surroundings(Struct, frozen=True):
    """One way to be started: a piece of shell that becomes the command, and what is in the environment."""

    within: str = 'exec "$@"'
    env: Mapping[str, str | None] = {}
    """What is added; None takes away."""
    options: tuple[str, ...] = ()
    """Stand before every command."""
    needs_root: bool = False


def lines(directory: Path) -> Iterator[tuple[str, ...]]:
    """A line for every command that ends by itself, and changes nothing but one node and a directory."""
    values = {
        "SEQ": "1",
        "FROM": "1",
        "TO": "2",
        "KIND": "vm",
        "SOURCE": str(directory / "blank.img"),
        "TARGET": "web:/blank.img",
        "WHAT": "blank",
        "FILE": str(directory / "lines.jsonl"),
        "COMMAND": "true",
        "NAME": "web",
        "WORD": "vm",
        "PART": "bridge",
        "VM": "web",
        "GROUP": "http",
        "NETWORK": "lab",
        "HOST": "8080",
        "PORTS": "8080:80",
    }
    for path, command in commands():
        if path in (*ENDLESS, *HEAVY):
            continue
        words = [*path.split(), *(values[argument.name] for argument in command.arguments)]
        words += ["--image", "blank"] if path == "vm create" else []
        words += ["--from", "web", "--to", "host", "--port", "icmp"] if path == "firewall explain" else []
        words += ["--dry-run"] if path.startswith("host") else []
        yield tuple(words)


def hostile(directory: Path) -> dict[str, Surroundings]:
    """By name; what they need is made in the directory."""
    (directory / "file").write_text("x")
    (directory / "locked").mkdir(mode=0)
    (directory / "empty").mkdir()
    for name, content in {
        "binary": bytes(range(256)),
        "deep": b"a = " + b"[" * 50_000,
        "huge": b"#" * (2 << 20),
        "unknown": b'colour = "red"',
        "wrong": b"node = { a = 1 }\nstate-dir = [1]\n",
        "bytes": b'node = "x\xff"',
    }.items():
        (directory / f"{name}.toml").write_bytes(content)
    for name, content in {"garbage": b"\xff\x00{", "list": b"[]", "odd": b'{"url": "ftp://\\u0000"}'}.items():
        (directory / name).mkdir()
        (directory / name / "nats.json").write_bytes(content)
        (directory / name / "events.db").write_bytes(content)
    (directory / "nested" / "nats.json").mkdir(parents=True)
    (directory / "nested" / "events.db").mkdir()
    (directory / "unwritable").mkdir(mode=0o500)
    lost = "-dac_override,-dac_read_search"
    without_roots_rights = f'exec setpriv --bounding-set={lost} --inh-caps={lost} "$@"'
    ascii_alone: dict[str, str | None] = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    found = {
        "nothing unusual": Surroundings(),
        "a locale of ASCII": Surroundings(env=ascii_alone),
        "a stream of Latin-1": Surroundings(env={"PYTHONIOENCODING": "latin-1:strict"}),
        "an unknown locale": Surroundings(env={"LC_ALL": "xx_XX.nonsense", "LANG": BYTES}),
        "no environment": Surroundings(within='exec env -i "$@"'),
        "no home": Surroundings(env={"HOME": None, "XDG_CONFIG_HOME": None, "XDG_STATE_HOME": None}),
        "a home of bytes": Surroundings(env={"HOME": f"/{BYTES}", "AETHERSCALE_STATE_DIR": None}),
        "a home that is a device": Surroundings(env={"HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null"}),
        "one column": Surroundings(env={"COLUMNS": "1", "TERM": "dumb"}),
        "odd terminals": Surroundings(env={"COLUMNS": "x", "LINES": "-1", "TERM": BYTES, "FORCE_COLOR": "1"}),
        "a directory that is gone": Surroundings(within='d=$(mktemp -d) && cd "$d" && rmdir "$d" && exec "$@"'),
        "a relative state directory in one that is gone": Surroundings(
            within='d=$(mktemp -d) && cd "$d" && rmdir "$d" && exec "$@"', options=("--state-dir", "s")
        ),
        "stdout full": Surroundings(within='exec "$@" >/dev/full'),
        "stdout closed": Surroundings(within='exec "$@" >&-'),
        "stdout read-only": Surroundings(within='exec "$@" 1</dev/null'),
        "stderr closed": Surroundings(within='exec "$@" 2>&-'),
        "stderr full": Surroundings(within='exec "$@" 2>/dev/full'),
        "everything closed": Surroundings(within='exec "$@" <&- >&- 2>&-'),
        "stdin closed": Surroundings(within='exec "$@" <&-'),
        "stdin a directory": Surroundings(within='exec "$@" </'),
        "a file as state directory": Surroundings(options=("--state-dir", str(directory / "file"))),
        "a file above the state directory": Surroundings(options=("--state-dir", str(directory / "file" / "s"))),
        "an empty state directory": Surroundings(options=("--state-dir", str(directory / "empty"))),
        "bytes as state directory": Surroundings(options=("--state-dir", str(directory / BYTES))),
        "a long state directory": Surroundings(options=("--state-dir", f"/{'x' * 300}")),
        "a state directory of garbage": Surroundings(options=("--state-dir", str(directory / "garbage"))),
        "a state directory with a list": Surroundings(options=("--state-dir", str(directory / "list"))),
        "a state directory with an odd address": Surroundings(options=("--state-dir", str(directory / "odd"))),
        "a state directory of directories": Surroundings(options=("--state-dir", str(directory / "nested"))),
        "a state directory that may not be entered": Surroundings(
            within=without_roots_rights, options=("--state-dir", str(directory / "locked")), needs_root=True
        ),
        "a state directory that may not be written": Surroundings(
            within=without_roots_rights, options=("--state-dir", str(directory / "unwritable")), needs_root=True
        ),
        "settings of bytes": Surroundings(env={"AETHERSCALE_TENANT": BYTES}),
        "settings of nonsense": Surroundings(env={"AETHERSCALE_STREAM_MAX_BYTES": "²", "AETHERSCALE_SIMULATED": "§"}),
        "a server that is none": Surroundings(options=("--nats", "nats://[::1")),
        "a port that is none": Surroundings(options=("--nats", "nats://h:99999")),
        "a host that is none": Surroundings(options=("--nats", f"nats://{'x' * 70}.invalid:1")),
        "few files": Surroundings(within='ulimit -n 5; exec "$@"'),
        "no bytes of a file": Surroundings(within='ulimit -f 0; exec "$@"'),
    }
    for name in ("binary", "deep", "huge", "unknown", "wrong", "bytes"):
        found[f"{name} settings"] = Surroundings(options=("--config", str(directory / f"{name}.toml")))
    found["settings without end"] = Surroundings(options=("--config", "/dev/zero"))
    found["a directory of settings"] = Surroundings(options=("--config", "/"))
    return found
