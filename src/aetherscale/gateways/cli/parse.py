"""Words to a command and its values. Raises `Failure` (bad usage): what was got, and what may have been meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from aetherscale.gateways.cli.failures import bad_usage, near
from aetherscale.gateways.cli.grammar import GLOBAL_OPTIONS, Argument, Command, Entry, Group, Option

DEFAULT_NAME = "aetherscale"


class Parsed(Struct, frozen=True):
    """The parsed line: the words that lead to a command, the command (a group where none was named), the values."""

    path: tuple[str, ...]
    node: Command | Group | None
    """None is the program itself."""
    values: Mapping[str, Any]
    """By the name of the option or argument; every one of the command is there."""
    program: str
    is_default: bool = False
    """Whether no command was named at all, and this is the one that needs no word."""
    texts: Mapping[str, str] = {}
    """The text of each option that takes a value, as it was typed."""

    @property
    def name(self) -> str:
        """As it is typed: `aetherscale vm create`."""
        return " ".join((self.program, *self.path))


class _Given(dict[str, Any]):
    """The values of what was typed, by the name of the option or argument, and the texts that they were read from."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}


class _Words:
    """The words that are left."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)

    def __bool__(self) -> bool:
        return bool(self._words)

    def next(self) -> str:
        return self._words.pop(0)

    def rest(self) -> list[str]:
        rest, self._words = self._words, []
        return rest


def parse(words: Sequence[str], entries: Sequence[Entry], default: str = "", program: str = DEFAULT_NAME) -> Parsed:
    """The command that is meant. Without any command word it is the one called `default`."""
    left = _Words(words)
    given = _Given()
    path: list[str] = []
    node: Command | Group | None = None
    is_default = False
    while left and not isinstance(node, Command):
        word = left.next()
        if word.startswith("-") and word != "-":
            option = _find(word, GLOBAL_OPTIONS)
            if option is None and not path and default:
                # Flags alone belong to the command that needs no word.
                path, node, is_default = [default], _member(default, None, entries, program), True
                left = _Words([word, *left.rest()])
                continue
            _take(option, word, left, given, " ".join((program, *path)), GLOBAL_OPTIONS)
            continue
        node = _member(word, node, entries, " ".join((program, *path)))
        path.append(word)
    if node is None and default and not (given.get("help") or given.get("version")):
        path, node, is_default = [default], _member(default, None, entries, program), True
    if isinstance(node, Command):
        # A user who named no command has no reason to think of one.
        values = _values(node, left, given, program if is_default else " ".join((program, *path)))
        return Parsed(tuple(path), node, values, program, is_default, given.texts)
    return Parsed(tuple(path), node, _complete(given, GLOBAL_OPTIONS), program)


def _member(word: str, node: Command | Group | None, entries: Sequence[Entry], where: str) -> Command | Group:
    if node is None:
        for entry in entries:
            if entry.name == word:
                return entry.load()
        names = [entry.name for entry in entries]
    else:
        assert isinstance(node, Group)
        for member in node.members:
            if member.name == word:
                return member
        names = [member.name for member in node.members]
    from aetherscale.gateways.cli.elsewhere import command_for

    program, *before = where.split()
    meant = command_for(word, before, names) if program == DEFAULT_NAME else ""
    hint = f"did you mean: {where} {meant}?" if meant else _meant(word, names, where)
    if hint and meant and not before:
        hint = f"{hint} all commands: {where} --help"
    raise bad_usage(f"{where}: no such command: {word!r}", hint or f"{where} --help")


def _values(command: Command, left: _Words, given: _Given, name: str) -> Mapping[str, Any]:
    options = (*command.options, *GLOBAL_OPTIONS)
    arguments = list(command.arguments)
    if command.refused:
        for word in left.rest():
            given |= {"help": True} if word in ("-h", "--help") else {"json": True} if word == "--json" else {}
        return _complete(given, options)
    words_only = False
    while left:
        word = left.next()
        if word == "--" and not words_only:
            words_only = True
        elif word.startswith("-") and word != "-" and not words_only:
            _take(_find(word, options), word, left, given, name, options, command.arguments)
        else:
            _place(word, arguments, left, given, name)
    for argument in arguments:
        if argument.many and argument.name in given:
            continue
        if argument.required and not given.get("help"):
            raise bad_usage(f"{name}: {argument.name} is missing: {argument.help}", f"{name} --help")
        given[argument.name] = [] if argument.rest or argument.many else None
    for option in options:
        if option.needed and option.name not in given and not given.get("help"):
            raise bad_usage(f"{name}: --{option.name} is missing: {option.help}", f"{name} --help")
    return _complete(given, options)


def _switches(word: str, options: Sequence[Option]) -> list[Option]:
    """The switches in `-it`, `-i` and `-t`; none where a letter is not a switch."""
    found = [_find(f"-{letter}", options) for letter in word[1:]]
    switches = [option for option in found if option is not None and not option.metavar]
    return switches if len(switches) == len(found) else []


def _place(word: str, arguments: list[Argument], left: _Words, given: dict[str, Any], name: str) -> None:
    """Give a word to the argument whose turn it is."""
    if not arguments:
        raise bad_usage(f"{name}: one word too many: {word!r}", f"{name} --help")
    argument = arguments[0]
    if argument.many:
        given.setdefault(argument.name, []).append(_read(argument, argument.name, word, name))
        return
    del arguments[0]
    if argument.rest:
        given[argument.name] = [_text(argument, argument.name, each, name) for each in (word, *left.rest())]
    else:
        given[argument.name] = _read(argument, argument.name, word, name)


def _find(word: str, options: Sequence[Option]) -> Option | None:
    name = word.partition("=")[0]
    for option in options:
        if name == f"--{option.name}" or (option.short and name == f"-{option.short}"):
            return option
    return None


def _take(
    option: Option | None,
    word: str,
    left: _Words,
    given: _Given,
    name: str,
    options: Sequence[Option],
    arguments: Sequence[Argument] = (),
) -> None:
    flag, equals, value = word.partition("=")
    if option is None and not word.startswith("--") and (switches := _switches(word, options)):
        given |= {switch.name: True for switch in switches}
        return
    if option is None:
        flags = [f"--{each.name}" for each in options]
        raise bad_usage(f"{name}: no such option: {flag}", _flag_meant(flag, flags, arguments) or f"{name} --help")
    if not option.metavar:
        if equals:
            raise bad_usage(f"{name}: {flag} takes no value, got {value!r}", f"{name} --help")
        given[option.name] = True
        return
    if not equals:
        if not left:
            raise bad_usage(f"{name}: {flag} needs a value: {option.metavar}", f"{name} --help")
        value = left.next()
    read = _read(option, flag, value, name)
    given.texts[option.name] = value
    if option.many:
        given.setdefault(option.name, []).append(read)
    else:
        given[option.name] = read


def _text(item: Option | Argument, shown: str, text: str, name: str) -> str:
    """The typed text; only the name of a file may be anything else than UTF-8."""
    if item.completes not in ("file", "dir") and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise bad_usage(f"{name}: {shown}: got {text!r}, expected UTF-8", f"{name} --help") from None
    return text


def _flag_meant(flag: str, flags: Sequence[str], arguments: Sequence[Argument]) -> str:
    from aetherscale.gateways.cli.elsewhere import flag_for

    found = flag_for(flag, flags, [argument.name for argument in arguments])
    if found or not flag.startswith("--"):
        return found
    # Without the dashes, which make any two of them alike.
    likely = near(flag.removeprefix("--"), [each.removeprefix("--") for each in flags])
    return f"did you mean: --{likely}?" if likely else ""


def _read(item: Option | Argument, shown: str, text: str, name: str) -> Any:
    text = _text(item, shown, text, name)
    later = item.later if isinstance(item, Argument) else ()
    if item.choices and text not in (*item.choices, *later):
        expected = ", ".join(item.choices)
        hint = _meant(text, item.choices) or f"{name} --help"
        raise bad_usage(f"{name}: {shown}: got {text!r}, expected one of {expected}", hint)
    try:
        return item.read(text)
    except ValueError as wrong:
        raise bad_usage(f"{name}: {shown}: got {text!r}, {wrong}", f"{name} --help") from None


def _complete(given: dict[str, Any], options: Sequence[Option]) -> Mapping[str, Any]:
    """All options, with defaults for those that were not given."""
    for option in options:
        if option.name not in given:
            given[option.name] = _absent(option)
    return given


def _absent(option: Option) -> Any:
    if option.many:
        return []
    if option.default is not None:
        return option.read(option.default)
    return None if option.metavar else False


def _meant(word: str, known: Sequence[str], where: str = "") -> str:
    found = near(word, known)
    return f"did you mean: {f'{where} ' if where else ''}{found}?" if found else ""
