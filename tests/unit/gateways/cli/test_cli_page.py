"""docs/cli.md says what the program has: its commands, its settings, its exit statuses, its flags."""

from __future__ import annotations

import re

from aetherscale.gateways.cli import failures
from aetherscale.gateways.cli.grammar import GLOBAL_OPTIONS
from aetherscale.gateways.cli.reference import commands
from aetherscale.gateways.cli.serve import SERVE
from aetherscale.gateways.cli.tree import ENTRIES
from aetherscale.settings import _OTHER_NAMES, NAMES, load_settings
from tests.support.node import ROOT

PAGE = (ROOT / "docs/cli.md").read_text()


def rows(section: str) -> list[list[str]]:
    """The rows of the table of a section, without its head."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def test_every_command_that_is_not_of_a_later_version_has_its_section() -> None:
    sections = set(re.findall(r"^### (.*)$", PAGE, re.MULTILINE))
    for name, _, command in commands(ENTRIES):
        assert (name in sections) != bool(command.refused), name
    listed = [row[0].split("`")[1] for row in rows("Commands")]
    assert listed == [name for name, _, _ in commands(ENTRIES)]


def test_every_option_and_every_example_of_a_command_is_in_its_section() -> None:
    for name, _, command in commands(ENTRIES):
        section = PAGE.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        for option in command.options if not command.refused else ():
            assert f"--{option.name}" in section, (name, option.name)
            assert option.help.replace("|", "\\|") in section, (name, option.name)
        for example in command.examples:
            assert f"\n{example}\n" in section, (name, example)


def test_the_settings_are_those_of_the_program() -> None:
    flags = {option.name for option in (*SERVE.options, *GLOBAL_OPTIONS)}
    wanted = []
    for name in (*NAMES, "config"):
        flag = f"`--{name}`" if name in flags else ""
        in_file = f"`{name}`" if name in NAMES else ""
        wanted.append([flag, f"`AETHERSCALE_{name.upper().replace('-', '_')}`", in_file])
    wanted += [["", f"`{other}`", ""] for other in _OTHER_NAMES.values()]
    assert sorted(row[:3] for row in rows("Settings")) == sorted(wanted)


def test_the_defaults_are_those_of_the_program() -> None:
    told = {row[1].strip("`"): row[3].split(";")[0].strip("` ") for row in rows("Settings")}
    default = load_settings({}, {"AETHERSCALE_CONFIG": "/dev/null", "HOME": "/home/x"})
    assert told["AETHERSCALE_TENANT"] == default.tenant
    assert told["AETHERSCALE_ACCELERATOR"] == default.accelerator
    assert told["AETHERSCALE_SUPERVISOR"] == default.supervisor
    assert told["AETHERSCALE_STREAM_MAX_BYTES"] == f"{default.stream_max_bytes >> 30}G"
    assert (told["AETHERSCALE_SIMULATED"], default.simulated) == ("false", False)
    assert (told["AETHERSCALE_ALLOW_UNISOLATED"], default.allow_unisolated) == ("false", False)
    assert (told["AETHERSCALE_IMAGE_DIRS"], default.image_dirs) == ("none", ())
    assert (told["AETHERSCALE_IMAGE_NETWORKS"], default.image_networks) == ("none", ())
    assert default.cache_dir == default.state_dir / told["AETHERSCALE_CACHE_DIR"].split("`")[0]


def test_the_statuses_are_those_of_the_program() -> None:
    known = (
        failures.DONE,
        failures.FAILED,
        failures.USAGE,
        failures.NOT_FOUND,
        failures.NO_NODE,
        failures.WAIT_RAN_OUT,
    )
    assert [row[0] for row in rows("Exit status")] == [str(status) for status in known]


def test_every_flag_that_the_page_names_is_one() -> None:
    known = {f"--{option.name}" for option in GLOBAL_OPTIONS}
    for _, _, command in commands(ENTRIES):
        known |= {f"--{option.name}" for option in command.options}
        known |= {f"-{option.short}" for option in command.options if option.short}
    for code in re.findall(r"`([^`\n]+)`", PAGE):
        for word in code.split():
            if re.fullmatch(r"--?[a-z][a-z-]*", word):
                # Flags of one letter may stand together.
                flags = {word} if word.startswith("--") else {f"-{letter}" for letter in word[1:]}
                assert flags <= known, word


def test_the_wait_lasts_as_long_as_the_page_says() -> None:
    create = next(command for name, _, command in commands(ENTRIES) if name == "vm create")
    timeout = next(option for option in create.options if option.name == "timeout")
    assert timeout.default is not None
    assert f"at most {timeout.default.removesuffix('s')} s" in PAGE
