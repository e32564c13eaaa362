"""Words of a node as the command line shows them: fields, values and hints in the words of who typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from aetherscale.actors.compute.model.commands import (
    CreateVmOptions,
    ListVmsOptions,
    LogsOptions,
    StopVmOptions,
    VmOptions,
)
from aetherscale.actors.compute.model.firstboot import checked_script
from aetherscale.actors.compute.model.publishing import parse_published
from aetherscale.actors.compute.model.sessioncommands import ConsoleInputOptions, ConsoleOptions, ExecOptions
from aetherscale.actors.images.model.commands import (
    BuildImageOptions,
    ImageOptions,
    ImportImageOptions,
    ListImagesOptions,
)
from aetherscale.actors.network.model.addresses import parse_allowed, parse_ipv4, parse_ipv6
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.wording import again, typed, typed_as
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.wire import decode
from tests.support.command_lines import commands, parsed

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
            ("vm create --image t --network n", "virtual-network[0]", "--network"),
            ("vm create --image t --group n", "groups[11]", "--group"),
        ):
            said = f"compute.create-vm: field '{field.partition('.')[0]}': got 1"
            failure = typed(Failure(400, said, details={"field": field}), parsed(line))
            path = " ".join(parsed(line).path)
            assert failure.shown == f"aetherscale {path}: {word}: got 1"
            assert failure.message == said, "a program reads what the node said"

    def test_a_value_that_a_component_refuses_is_told_with_the_option_that_it_was_typed_for(self) -> None:
        own = "leave it out: the network then has a prefix of its own"
        cases: tuple[tuple[str, Callable[[], object], str, str, str], ...] = (
            ("network create x --ipv6 none", partial(parse_ipv6, "none", field="ipv6-prefix"),
             "--ipv6: got 'none'", "an IPv6 prefix, as fd12:3456:789a:1::/64: every network has IPv6", own),
            ("network create x --ipv4 foo", partial(parse_ipv4, "foo", field="ipv4-prefix"),
             "--ipv4: got 'foo'", "an IPv4 prefix, as 10.20.30.0/24, or 'none'", ""),
            ("vm create --image t --allow-address foo", partial(parse_allowed, "foo", field="allow-addresses"),
             "--allow-address: got 'foo'", "an address or a prefix, as 10.20.30.0/24 or fd12:3456:789a:1::/64", ""),
            ("vm create --image t --publish foo", partial(parse_published, ["foo"], host_loopback=False),
             "--publish: got 'foo'", "[ADDRESS:]HOST-PORT:GUEST-PORT[/tcp|/udp], as 8080:80", ""),
        )  # fmt: skip
        for line, refuse, got, expected, hint in cases:
            with pytest.raises(Refused) as refused:
                refuse()
            failure = typed(Failure.of_refusal(refused.value), parsed(line))
            path = " ".join(parsed(line).path)
            assert failure.shown == f"aetherscale {path}: {got}, expected {expected}"
            assert failure.hint == hint
            assert failure.message.startswith("got "), "a program reads what the node said"

    def test_what_is_wrong_with_a_file_names_the_option_and_the_file(self) -> None:
        for script, hint in (
            ("#!/bin/sh\r\n", "sed -i 's/\\r$//' 'my file'"),
            ("\ufeff#!/bin/sh\n", "sed -i '1s/^\\xef\\xbb\\xbf//' 'my file'"),
            ("echo\n", "begin it with #!/bin/sh, or #! and another absolute path, at most 255 bytes"),
        ):
            with pytest.raises(Refused) as refused:
                checked_script(script)
            line = "vm create --image t --init-script"
            failure = typed(Failure.of_refusal(refused.value), parsed(f"{line} 'my file'"))
            assert failure.shown.startswith("aetherscale vm create: --init-script: got a script ")
            assert failure.hint == hint
            of_stdin = typed(Failure.of_refusal(refused.value), parsed(f"{line} -"))
            assert of_stdin.hint == hint.replace("'my file'", "FILE"), "stdin has no name to be mended by"

    def test_an_option_that_is_missing_is_named(self) -> None:
        def shown(line: str, message: str, field: str) -> str:
            return typed(Failure(400, message, details={"field": field}), parsed(line)).shown

        why = "a bridged network is a bridge of the host: which one?"
        assert shown("network create n --kind bridged", why, "bridge") == f"--bridge: {why}"
        assert shown("network create n --kind bridged --bridge br0", why, "bridge") == why
        assert shown("image show n", "no such image: 'n'", "image") == "no such image: 'n'"

    def test_commas_in_an_option_that_is_typed_for_each_are_seen(self) -> None:
        def hint(line: str, field: str, own: str = "", code: int = 400, got: str = "a,b") -> str:
            return typed(
                Failure(code, f"got {got!r}, expected a name", hint=own, details={"field": field}), parsed(line)
            ).hint

        assert hint("vm create --image t --network a,b", "virtual-network[0]") == (
            "several are typed as --network ONE --network OTHER"
        )
        assert hint("vm create --image t --network a,b", "virtual-network", "do it") == "do it"
        for got in ("ab", "ab,", ",ab"):
            assert hint(f"vm create --image t --network {got}", "virtual-network", got=got) == ""
        assert hint("vm delete a,b", "vm-id") == "several are typed with spaces between: NAME NAME"
        assert hint("vm show a,b", "vm-id") == ""
        assert hint("vm create --image t --network a,b", "virtual-network", code=500) == ""
        assert hint("vm create a,b --image t", "name") == ""

    def test_every_option_of_the_wire_is_filled_by_some_word(self) -> None:
        fields = {field.encode_name for kind in WIRE for field in msgspec.structs.fields(kind)}
        words = {option.name for _, command in commands() for option in command.options}
        words |= {argument.name for _, command in commands() for argument in command.arguments}
        unnamed = {field for field in fields if not {field, *typed_as(field)} & words}
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
        to_do = "aetherscale firewall group create web; aetherscale firewall attach web web"
        assert again(to_do, parsed("--tenant bob firewall forward add web 80:80")) == (
            "aetherscale --tenant bob firewall group create web; aetherscale --tenant bob firewall attach web web"
        )

    def test_a_hint_about_another_object_than_the_one_that_was_named_keeps_its_id(self) -> None:
        failure = Failure(409, "the image is not ready", hint="aetherscale image show 0123456789abcdef")
        assert typed(failure, parsed("vm create web --image 0123456789abcdef")).hint == failure.hint
        failure = Failure(409, "the image is not ready", hint="aetherscale image show 0123456789abcdef")
        assert typed(failure, parsed("vm create web --image tiny")).hint == "aetherscale image show tiny"

    def test_a_hint_names_the_name_that_was_typed(self) -> None:
        failure = Failure(409, "the VM is not running", hint="aetherscale vm start 0123456789abcdef")
        assert typed(failure, parsed("vm exec web ls")).hint == "aetherscale vm start web"
        by_id = Failure(409, "x", hint="aetherscale vm start 0123456789abcdef")
        assert typed(by_id, parsed("vm exec 0123456789abcdef ls")).hint == "aetherscale vm start 0123456789abcdef"
