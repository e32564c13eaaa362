"""Words of the command line to commands and values, and what is said of words that are not understood."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from aetherscale.actors.compute.model.commands import (
    ConsoleInputOptions,
    ConsoleOptions,
    CreateVmOptions,
    ExecOptions,
    ListVmsOptions,
    LogsOptions,
    StopVmOptions,
    VmOptions,
)
from aetherscale.actors.images.model.commands import (
    BuildImageOptions,
    ImageOptions,
    ImportImageOptions,
    ListImagesOptions,
)
from aetherscale.gateways.cli import elsewhere, flat, tree
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.grammar import GLOBAL_OPTIONS, Command, Group
from aetherscale.gateways.cli.help import help_of_command, help_of_group, help_of_program
from aetherscale.gateways.cli.parse import Parsed, parse
from aetherscale.gateways.cli.vm_tasks import _labels
from aetherscale.gateways.cli.wording import TYPED_AS, typed
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.wire import decode

ROOT = Path(__file__).parents[4]
WIRE = (CreateVmOptions, ExecOptions, LogsOptions, StopVmOptions, ImportImageOptions, BuildImageOptions)


def fields_of(kind: Any) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return described.fields


def patterns(kind: inspect.Type, description: str = "") -> list[tuple[str, str]]:
    """Every pattern that a type has, with the words for it."""
    match kind:
        case inspect.Metadata():
            return patterns(kind.type, (kind.extra_json_schema or {}).get("description", ""))
        case inspect.StrType():
            return [(kind.pattern, description)] if kind.pattern else []
        case inspect.UnionType():
            return [each for member in kind.types for each in patterns(member, description)]
        case inspect.ListType():
            return patterns(kind.item_type)
        case inspect.DictType():
            return patterns(kind.key_type) + patterns(kind.value_type)
        case _:
            return []


def parsed(line: str) -> Parsed:
    return parse(shlex.split(line), tree.ENTRIES, "serve")


def values(line: str) -> dict[str, Any]:
    """What was given, without what was left out."""
    return {name: value for name, value in parsed(line).values.items() if value not in (None, False, [])}


def refusal(line: str) -> Failure:
    with pytest.raises(Failure) as failure:
        parsed(line)
    assert failure.value.status == 2
    return failure.value


def commands() -> Iterator[tuple[str, Command]]:
    """Every command with the words that lead to it."""

    def below(path: str, node: Command | Group) -> Iterator[tuple[str, Command]]:
        if isinstance(node, Command):
            yield path, node
        else:
            for member in node.members:
                yield from below(f"{path} {member.name}", member)

    for entry in tree.ENTRIES:
        yield from below(entry.name, entry.load())


class TestWords:
    def test_a_command_gets_its_arguments_and_options_in_any_order(self) -> None:
        for line in (
            "vm create web --image tiny --cpus 2 --memory 2G",
            "vm create --memory=2G --image=tiny web --cpus=2",
            "vm create --cpus 2 --memory 2048M --image tiny -- web",
        ):
            assert parsed(line).path == ("vm", "create")
            assert values(line) == {"NAME": "web", "image": "tiny", "cpus": 2, "memory": 2048, "timeout": 120.0}

    def test_global_options_stand_anywhere(self) -> None:
        for line in ("--json vm list --all", "vm --json list --all", "vm list --all --json", "vm list --json --all"):
            assert values(line) == {"json": True, "all": True}
        assert values("--state-dir /s vm list") == values("vm list --state-dir=/s") == {"state-dir": "/s"}

    def test_a_file_may_have_any_name(self) -> None:
        assert values("log export caf\udce9")["FILE"] == "caf\udce9"

    def test_no_command_serves(self) -> None:
        assert parsed("").path == ("serve",)
        assert parsed("").is_default
        assert parsed("--node host1").is_default
        assert not parsed("serve").is_default
        assert parsed("--state-dir /s").path == ("serve",)
        assert values("--node host1 --simulated") == {"node": "host1", "simulated": True}

    def test_help_and_version_need_no_command(self) -> None:
        assert parsed("--help").node is None
        assert parsed("--version").values["version"]
        assert isinstance(parsed("vm --help").node, Group)
        assert parsed("vm create --help").values["help"]
        assert parsed("vm create -h").values["help"]

    def test_an_option_may_be_given_more_than_once_where_it_says_so(self) -> None:
        assert values("vm list --label a=1 --label b=2")["label"] == [("a", "1"), ("b", "2")]
        assert values("vm list --node a --node b")["node"] == "b"

    def test_what_runs_in_a_guest_is_taken_as_it_is(self) -> None:
        for line in ("vm exec web -- ls -l --json", "vm exec web ls -l --json"):
            assert values(line) == {"NAME": "web", "COMMAND": ["ls", "-l", "--json"], "detach-key": b"\x1d"}
        assert values("vm exec web --json -- ls")["json"] is True
        assert values("vm exec web -- -x -- y")["COMMAND"] == ["-x", "--", "y"]

    def test_several_can_be_named_with_options_in_between(self) -> None:
        for line in ("vm stop a b --kill c", "vm stop --kill a b c", "vm stop a -- b c --kill"):
            assert values(line)["NAME"] in (["a", "b", "c"], ["a", "b", "c", "--kill"])
        assert parsed("vm stop --help").values["NAME"] == []

    def test_a_dash_is_an_argument(self) -> None:
        assert values("log import -") == {"FILE": "-"}

    def test_a_command_of_a_later_version_takes_whatever_it_is_given(self) -> None:
        found = parsed("network create lab --kind nat extra words --json")
        assert isinstance(found.node, Command)
        assert found.node.refused
        assert found.values["json"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "said", "hint"),
        [
            ("vm lsit", "aetherscale vm: no such command: 'lsit'", "did you mean: aetherscale vm list?"),
            ("imgae list", "aetherscale: no such command: 'imgae'", "did you mean: aetherscale image?"),
            ("vm info web", "aetherscale vm: no such command: 'info'", "did you mean: aetherscale vm show?"),
            ("vm rm web", "aetherscale vm: no such command: 'rm'", "did you mean: aetherscale vm delete?"),
            ("ls", "aetherscale: no such command: 'ls'", "did you mean: aetherscale vm list?"),
            ("ps", "aetherscale: no such command: 'ps'", "did you mean: aetherscale vm list?"),
            ("launch tiny", "aetherscale: no such command: 'launch'", "did you mean: aetherscale vm create?"),
            ("start web", "aetherscale: no such command: 'start'", "did you mean: aetherscale vm start?"),
            ("kill web", "aetherscale: no such command: 'kill'", "did you mean: aetherscale vm stop --kill?"),
            ("vm status web", "aetherscale vm: no such command: 'status'", "did you mean: aetherscale vm show?"),
            ("vm ssh web", "aetherscale vm: no such command: 'ssh'", "did you mean: aetherscale vm console?"),
            ("vm kill web", "aetherscale vm: no such command: 'kill'", "did you mean: aetherscale vm stop --kill?"),
            ("image pull x", "aetherscale image: no such command: 'pull'", "did you mean: aetherscale image import?"),
            ("vm delete web --force", "aetherscale vm delete: no such option: --force", "did you mean: --kill?"),
            ("vm delete web -f", "aetherscale vm delete: no such option: -f", "did you mean: --kill?"),
            ("events list -n 5", "aetherscale events list: no such option: -n", "did you mean: --limit?"),
            ("events list --tail 5", "aetherscale events list: no such option: --tail", "did you mean: --limit?"),
            ("vm create --name web", "no such option: --name", "the NAME is a word of its own, without a flag"),
            ("vm delete web -y", "no such option: -y", "leave it out: nothing here asks"),
            ("vm list -x", "no such option: -x", "aetherscale vm list --help"),
            ("--nope", "aetherscale: no such option: --nope", ""),
            ("--node a b", "aetherscale: one word too many: 'b'", "aetherscale --help"),
            ("serve --nope", "aetherscale serve: no such option: --nope", ""),
            ("vm show x\udcff", "NAME: got 'x\\udcff', expected UTF-8", ""),
            ("vm exec web a\udcff", "COMMAND: got 'a\\udcff', expected UTF-8", ""),
            ("vm list --label k=\udcff", "--label: got 'k=\\udcff', expected UTF-8", ""),
            ("xyzzy", "aetherscale: no such command: 'xyzzy'", "aetherscale --help"),
            ("vm list --al", "aetherscale vm list: no such option: --al", "did you mean: --all?"),
            ("vm stop web --kil", "aetherscale vm stop: no such option: --kil", "did you mean: --kill?"),
            ("vm stop", "aetherscale vm stop: NAME is missing", "--help"),
            ("vm show a b", "one word too many: 'b'", "--help"),
            ("vm create web", "--image is missing", "--help"),
            ("vm create --image", "--image needs a value: IMAGE", "--help"),
            ("vm create --image t --memory 512", "--memory: got '512', expected a size with its unit", "--help"),
            ("vm create --image t --disk 1500M", "--disk: got '1500M', expected whole GiB", "--help"),
            ("vm create --image t --cpus -1", "--cpus: got '-1', expected a whole number, 1 or more", "--help"),
            ("vm create --image t --cpus 0", "--cpus: got '0', expected a whole number, 1 or more", "--help"),
            ("vm logs web --lines -5", "--lines: got '-5', expected a whole number, 0 or more", "--help"),
            ("events list --limit -1", "--limit: got '-1', expected a whole number, 0 or more", "--help"),
            (f"events show {10**18}", "expected a whole number of at most 18 digits", "--help"),
            ("vm list -n 5", "no such option: -n", "aetherscale vm list --help"),
            ("vm list --force", "no such option: --force", "aetherscale vm list --help"),
            ("vm list --stat-dir x", "no such option: --stat-dir", "did you mean: --state-dir?"),
            ("vm create --image t --cpus ٣", "expected a whole number", "--help"),
            ("vm create --image t --restart allways", "expected one of always", "did you mean: always?"),
            ("vm create --image t --timeout soon", "expected a duration, like 30s or 5m", "--help"),
            ("vm list --label x", "expected KEY=VALUE", "--help"),
            ("vm list --all=yes", "--all takes no value, got 'yes'", "--help"),
            ("image build tny", "got 'tny', expected one of tiny", "did you mean: tiny?"),
            ("events show x", "SEQ: got 'x', expected a whole number", "--help"),
            ("replay vms", "KIND: got 'vms'", "did you mean: vm?"),
            ("vm exec web", "COMMAND is missing", "--help"),
            ("--jsn", "no such option: --jsn", "did you mean: --json?"),
        ],
    )
    def test_what_was_got_and_what_may_have_been_meant_is_said(self, line: str, said: str, hint: str) -> None:
        failure = refusal(line)
        assert said in failure.message
        assert hint in failure.hint


class TestOtherTools:
    def test_every_word_of_theirs_leads_to_a_command_of_ours(self) -> None:
        paths = [path for path, _ in commands()]
        known = {*paths, *(entry.name for entry in tree.ENTRIES), "--help", "--version"}
        for theirs, ours in elsewhere.AT_THE_TOP.items():
            assert ours.removesuffix(" --kill") in known, theirs
            assert theirs not in {entry.name for entry in tree.ENTRIES}, "a word of ours needs no translation"
        members = {path.partition(" ")[2] for path in paths}
        for theirs, candidates in elsewhere.IN_A_GROUP.items():
            assert all(ours.partition(" ")[0] in members for ours in candidates), theirs

    def test_every_flag_of_theirs_leads_to_one_of_ours(self) -> None:
        ours = {f"--{option.name}" for _, command in commands() for option in command.options}
        ours |= {f"--{option.name}" for option in GLOBAL_OPTIONS} | {"NAME"}
        missing = {each for found in elsewhere.FLAGS.values() for each in found} - ours
        assert missing <= {"--publish", "--wide"}


class TestWording:
    """What a node says of fields is read in the words of who typed."""

    def test_every_field_that_a_command_fills_is_named_as_it_is_typed(self) -> None:
        for line, field, word in (
            ("vm create --image t --cpus 9", "cpus", "--cpus"),
            ("vm create --image t --memory 9M", "memory-mib", "--memory"),
            ("vm create --image t --disk 9G", "disk-gib", "--disk"),
            ("vm create VM --image t", "name", "NAME"),
            ("image import f --name F", "name", "--name"),
            ("image import f", "source", "SOURCE"),
            ("vm create --image T", "image", "--image"),
            ("image show T", "image", "NAME"),
            ("vm stop T --grace 2d", "grace-s", "--grace"),
            ("vm show T", "vm-id", "NAME"),
            ("vm exec T x", "command", "COMMAND"),
            ("vm create --image t --label a=b", "labels.a", "--label"),
            ("vm create --image t --network n", "virtual-network", "--network"),
        ):
            said = f"compute.create-vm: field '{field.partition('.')[0]}': got 1"
            failure = typed(Failure(400, said, details={"field": field}), parsed(line))
            path = " ".join(parsed(line).path)
            assert failure.shown == f"aetherscale {path}: {word}: got 1"
            assert failure.message == said, "a program reads what the node said"

    def test_every_option_of_the_wire_is_filled_by_some_word(self) -> None:
        fields = {field.encode_name for kind in WIRE for field in msgspec.structs.fields(kind)}
        words = {option.name for _, command in commands() for option in command.options}
        words |= {argument.name for _, command in commands() for argument in command.arguments}
        unnamed = {field for field in fields if not {field, *TYPED_AS.get(field, ())} & words}
        assert unnamed <= {"autostart", "raw", "stdin"}

    def test_a_value_is_shown_as_it_was_typed_and_bounds_as_people_write_them(self) -> None:
        for line, body, kind, said in (
            ("vm create --image t --memory 1M", {"image": "t", "memory-mib": 1}, CreateVmOptions,
             "--memory: got '1M', expected a whole number from 32 to 16777216 (guest memory in MiB)"),
            ("vm stop T --grace 2d", {"grace-s": 172800.0}, StopVmOptions,
             "--grace: got '2d', expected a number from 0 to 3600 (seconds that the guest has to shut down)"),
            ("vm logs T -n 2000000", {"lines": 2_000_000}, LogsOptions,
             "--lines: got '2000000', expected a whole number from 0 to 1000000 (lines)"),
            ("vm exec T --timeout 2h x", {"command": ["x"], "timeout-s": 7200.0}, ExecOptions,
             "--timeout: got '2h', expected a number above 0 to 3600 (seconds that it may take)"),
        ):  # fmt: skip
            with pytest.raises(Refused) as refused:
                decode(msgspec.json.encode(body), kind, "compute.task")
            failure = typed(Failure.of_refusal(refused.value), parsed(line))
            assert failure.shown.partition(": ")[2] == said

    def test_every_rule_of_a_text_is_told_in_words(self) -> None:
        kinds = [*WIRE, ConsoleOptions, ConsoleInputOptions, ListVmsOptions, VmOptions, ImageOptions, ListImagesOptions]
        rules = [rule for kind in kinds for field in fields_of(kind) for rule in patterns(field.type)]
        assert len(rules) > 10
        assert [pattern for pattern, description in rules if not description] == []

    def test_a_label_is_refused_in_words(self) -> None:
        for labels in ({"-a": "b"}, {"a$": "b"}, {"": "b"}, {"x" * 64: "b"}, {"a": "b\n"}, {"a": "x" * 257}):
            with pytest.raises(Refused) as refused:
                decode(msgspec.json.encode({"image": "t", "labels": labels}), CreateVmOptions, "compute.create-vm")
            assert re.search(r"expected a (key: letters|value: text)", str(refused.value))
            assert "\\A" not in str(refused.value)

    def test_a_hint_means_the_tenant_and_the_node_that_were_typed(self) -> None:
        def hint(line: str) -> str:
            return typed(Failure(404, "no such image", hint="aetherscale image list, or: aetherscale image build tiny"),
                         parsed(line)).hint  # fmt: skip

        assert hint("vm create --image t") == "aetherscale image list, or: aetherscale image build tiny"
        assert hint("--tenant bob vm create --image t") == (
            "aetherscale --tenant bob image list, or: aetherscale --tenant bob image build tiny"
        )
        assert hint("vm create --image t --state-dir '/a b'").startswith("aetherscale --state-dir '/a b' image list")

    def test_a_hint_names_the_name_that_was_typed(self) -> None:
        failure = Failure(409, "the VM is not running", hint="aetherscale vm start 0123456789abcdef")
        assert typed(failure, parsed("vm exec web ls")).hint == "aetherscale vm start web"
        by_id = Failure(409, "x", hint="aetherscale vm start 0123456789abcdef")
        assert typed(by_id, parsed("vm exec 0123456789abcdef ls")).hint == "aetherscale vm start 0123456789abcdef"


class TestHelp:
    def test_every_example_is_understood(self) -> None:
        seen = 0
        for path, command in commands():
            assert command.examples or command.refused, f"aetherscale {path} has no example"
            for example in command.examples:
                # What a shell would take for itself.
                words = re.split(r" [>&|]", example.rpartition("| ")[2])[0]
                program, _, line = words.partition(" ")
                assert program in ("aetherscale", "nats"), example
                if program == "aetherscale":
                    assert parsed(line).path == tuple(path.split()), example
                    seen += 1
        assert seen > 40

    def test_every_command_line_of_the_pages_is_understood(self) -> None:
        seen = 0
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
            for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
                for line in block.splitlines():
                    if line.startswith("aetherscale "):
                        words = re.split(r" [>&|]", line.partition("#")[0])[0]
                        parse(shlex.split(words)[1:], tree.ENTRIES, "serve")
                        seen += 1
        assert seen > 10

    def test_options_stand_where_they_are_understood_and_what_belongs_together_is_on_one_line(self) -> None:
        for path, command in commands():
            text = help_of_command(command, f"aetherscale {path}")
            assert not re.search(r"(\[default:|\|)$", text, re.MULTILINE), path
            assert "\u00a0" not in text
            if command.options and any(argument.rest for argument in command.arguments):
                assert text.startswith(f"usage: aetherscale {path} [options] ")
        assert values("vm exec --timeout 5s web ls --timeout")["COMMAND"] == ["ls", "--timeout"]

    def test_the_help_names_every_argument_option_and_example(self) -> None:
        for path, command in commands():
            text = help_of_command(command, f"aetherscale {path}")
            for option in command.options:
                assert f"--{option.name}" in text
            for argument in command.arguments:
                assert argument.name in text
            for example in command.examples:
                assert example in text.replace(" \\\n     ", ""), "a shell joins what a backslash breaks"
            assert max(map(len, text.splitlines())) <= 120

    def test_the_help_of_a_group_names_its_commands(self) -> None:
        program = help_of_program(tree.ENTRIES, "aetherscale", "about")
        for entry in tree.ENTRIES:
            assert f"\n  {entry.name} " in program
            node = entry.load()
            if isinstance(node, Group):
                text = help_of_group(node, f"aetherscale {node.name}")
                assert all(f"\n  {member.name} " in text for member in node.members)

    def test_the_words_at_the_top_are_the_names_of_what_they_load(self) -> None:
        assert [entry.load().name for entry in tree.ENTRIES] == [entry.name for entry in tree.ENTRIES]


class TestFlatVerbs:
    @pytest.mark.parametrize(
        "line",
        [
            "list-vms",
            "create-vm --image I --init-script F --vpn V --no-public-ip",
            "start-vm --vm-id web",
            "stop-vm --vm-id web --kill",
            "delete-vm --vm-id web",
        ],
    )
    def test_the_verbs_of_the_first_version_are_understood(self, line: str) -> None:
        assert isinstance(parse(line.split(), flat.ENTRIES, program=flat.NAME).node, Command)

    def test_without_a_verb_nothing_is_done(self) -> None:
        assert parse([], flat.ENTRIES, program=flat.NAME).node is None
        with pytest.raises(Failure, match="aetherscale-cli: no such command: 'list-vm'"):
            parse(["list-vm"], flat.ENTRIES, program=flat.NAME)


class TestLabels:
    def test_one_key_has_one_value(self) -> None:
        assert _labels([("env", "a"), ("env", "a"), ("b", "")]) == {"env": "a", "b": ""}
        with pytest.raises(Failure) as failure:
            _labels([("env", "a"), ("x", "y"), ("env", "b")])
        assert failure.value.status == 2
        assert "'env' is given as 'a' and as 'b'" in str(failure.value)
