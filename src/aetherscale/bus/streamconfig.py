"""The settings that the copy of the log has to have, whatever an operator made of them. Pure.

Only what would make the copy another one is looked at: what it takes, what it drops, and whether it can be read. How
many replicas it has, where they are, and what else a newer server may let one set is the operator's affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

UNLIMITED: Final = -1

_ABSENT: Final[Mapping[str, Any]] = {
    "sealed": False,
    "no_ack": False,
    "allow_rollup_hdrs": False,
    "discard_new_per_subject": False,
    "allow_msg_counter": False,
    "mirror": None,
    "sources": None,
    "subject_transform": None,
}
"""The settings that must not be set, with their empty values: servers leave such fields out."""


def wanted(subjects: tuple[str, ...], max_bytes: int, duplicate_window_ns: int) -> Mapping[str, Any]:
    """The settings, as JetStream names them."""
    return {
        "subjects": list(subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "allow_direct": True,
        "max_bytes": max_bytes,
        "max_msgs": UNLIMITED,
        "max_msgs_per_subject": UNLIMITED,
        "max_msg_size": UNLIMITED,
        "max_age": 0,
        "duplicate_window": duplicate_window_ns,
    }


def differences(config: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the settings that are others."""
    limits = [name for name, value in settings.items() if config.get(name, _unset(value)) != value]
    return tuple(limits + [name for name, absent in _ABSENT.items() if (config.get(name) or absent) != absent])


def subjects(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The subjects that a stream takes; none where it says something else."""
    found = config.get("subjects") or ()
    return tuple(str(subject) for subject in found) if isinstance(found, list) else ()


def _unset(value: Any) -> Any:
    """The value of a setting that a server leaves out."""
    return UNLIMITED if value == UNLIMITED and not isinstance(value, bool) else type(value)()
