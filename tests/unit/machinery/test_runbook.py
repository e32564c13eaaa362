"""Every refusal and every failed outcome that a user can see has its page in docs/runbook.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src/aetherscale"
RUNBOOK = ROOT / "docs/runbook.md"
TEXT_OF = {
    "Refused": 1,
    "Fault": 0,
    "HttpError": 1,
    "EmbeddedServerError": 0,
    "Damaged": 0,
    "InDoubt": 0,
    "Locked": 0,
    "NotALog": 0,
    "StorageFull": 0,
    "TooNew": 0,
}
"""Which argument of each is what the user reads."""
HOLE = "\0"
"""Where a message has a value, and a heading an ellipsis."""
OF_A_KIND = (
    "log damaged at ",
    "the log is damaged",
    "event \0",
    "stream \0",
    "the log says that it has schema",
    "the log cannot be read",
    "it is missing or empty",
    "this is not the head of a log",
    "the log does not name its node",
    "the payload is",
    "the log ends at event \0, but",
    "the log has events of type",
)
"""Messages of damage: all are told by `log damaged at …` and what follows it."""
NOT_FOR_USERS = (
    "__main__.py",
    "docs.py",
    "eventstore/memory.py",
    "eventstore/sqlite/past.py",
    "actors/compute/simulated",
    "actors/network/simulated",
    "/proc/meminfo",
)


def messages() -> Iterator[tuple[str, str]]:
    """Every message with a text of its own, values as holes, and where it is."""
    for path in sorted(SOURCE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in TEXT_OF:
                place = TEXT_OF[call.func.id]
                text = template(call.args[place]) if len(call.args) > place else ""
                if re.search(r"[a-z]{3}", text):
                    yield text, f"{path.relative_to(SOURCE)}:{call.lineno}"


def template(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part) for part in parts)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{template(body)}\n{template(orelse)}"
        case _:
            return HOLE


def quotes() -> list[re.Pattern[str]]:
    """What headings and pages quote of messages."""
    found = re.findall(r"`([^`\n]+)`", RUNBOOK.read_text())
    return [re.compile(".*".join(re.escape(part) for part in quote.split("…")), re.DOTALL) for quote in found]


def uncovered() -> list[str]:
    known = [pattern for pattern in quotes() if len(pattern.pattern) > 10]
    return [
        f"{where}: {text.replace(HOLE, '…')}"
        for text, where in messages()
        if not any(pattern.search(text) for pattern in known)
        and not any(each in text for each in OF_A_KIND)
        and not any(where.startswith(each) or each in text for each in NOT_FOR_USERS)
    ]


def test_every_refusal_and_every_fault_has_its_page() -> None:
    assert uncovered() == []


def test_one_that_has_none_is_seen() -> None:
    assert list(messages()), "there are messages"
    assert not any(pattern.search("the moon is \0 today") for pattern in quotes() if len(pattern.pattern) > 10)
