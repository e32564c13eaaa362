"""Words of the command line to commands and values, and what is said of words that are not understood."""

from __future__ import annotations

import pytest

from aetherscale.gateways.cli import elsewhere, flat, tree
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.grammar import GLOBAL_OPTIONS, Command, Group
from aetherscale.gateways.cli.objects import labels
from aetherscale.gateways.cli.parse import parse
from tests.support.command_lines import commands, parsed, values


def refusal(line: str) -> Failure:
    with pytest.raises(Failure) as failure:
        parsed(line)
    assert failure.value.status == 2
    return failure.value


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
        found = parsed("vpn create lab --kind nat extra words --json")
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
            ("ssh web", "aetherscale: no such command: 'ssh'", "did you mean: aetherscale vm ssh?"),
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
        assert labels([("env", "a"), ("env", "a"), ("b", "")]) == {"env": "a", "b": ""}
        with pytest.raises(Failure) as failure:
            labels([("env", "a"), ("x", "y"), ("env", "b")])
        assert failure.value.status == 2
        assert "'env' is given as 'a' and as 'b'" in str(failure.value)
