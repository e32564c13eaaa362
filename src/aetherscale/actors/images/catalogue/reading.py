"""A catalogue in TOML, read strictly: what is wrong is told with its line and its field.

    [[image]]
    name = "debian-13"          the name that it is fetched by, and that it has here
    about = "Debian 13"         one line for people
    user = "debian"             the account of its guests that keys are for; optional
    ready = "agent"             as `image import --ready`; optional
    first-boot = "credentials"  as `image import --first-boot`; optional
    [image.x86_64]              for each architecture, as uname(1) names it
    url = "https://…"
    checksums = "https://…"     where its checksum is published; optional beside `sha256`
    sha256 = "…"                its checksum, where that does not change

Pure: a catalogue is bytes here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from aetherscale.actors.images.model.catalogued import Entry
from aetherscale.actors.images.model.effects import FIRST_BOOTS, READY_CHANNELS
from aetherscale.kernel.names import IMAGE_NAME_PATTERN, IMAGE_NAME_RULE

MOST_BYTES: Final = 256 * 1024
"""A catalogue has a few lines for each image."""
MOST_ENTRIES: Final = 500
ARCHITECTURES: Final = ("x86_64", "aarch64")

_MOST_ADDRESS: Final = 2000
_ADDRESS: Final = re.compile(rf"https?://[^\x00-\x20\x7f]{{1,{_MOST_ADDRESS}}}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_ABOUT: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,100}")
_HEADER: Final = re.compile(r"\s*\[\[\s*image\s*\]\]")
_TOML_LINE: Final = re.compile(r"\(at line ([0-9]+), column [0-9]+\)")
_LARGE: Final = "leave out what nobody fetches"
_FIELDS: Final = ("name", "about", "user", "ready", "first-boot", *ARCHITECTURES)
_FILE_FIELDS: Final = ("url", "checksums", "sha256")


class BadCatalogue(Exception):
    """A catalogue that is none.

    `line` begins with 1, 0 where none can be named; `entry` is then the number of the image, which begins with 1, or 0.
    `field` is "" for the whole.
    """

    def __init__(self, what: str, *, line: int = 0, entry: int = 0, field: str = "", remedy: str = "") -> None:
        where = f"line {line}" if line else f"image {entry}" if entry else ""
        at = ", ".join(part for part in (where, f"field {field!r}" if field else "") if part)
        super().__init__(f"{at}: {what}" if at else what)
        self.line = line
        self.entry = entry
        self.field = field
        self._remedy = remedy

    @property
    def remedy(self) -> str:
        """What its operator can do."""
        if self._remedy:
            return self._remedy
        what = "that line" if self.line else "that image" if self.entry else "it"
        return f"correct {what}; docs/images.md has the fields"


def read(raw: bytes, architecture: str) -> Mapping[str, Entry]:
    """The entries of a catalogue by their names; those of other architectures have no URL. Raises `BadCatalogue`."""
    if len(raw) > MOST_BYTES:
        raise BadCatalogue(f"it has {len(raw)} bytes or more, and {MOST_BYTES} are allowed", remedy=_LARGE)
    try:
        text = raw.decode()
    except UnicodeDecodeError as wrong:
        raise BadCatalogue("it is not UTF-8", line=raw.count(b"\n", 0, wrong.start) + 1) from None
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise BadCatalogue("it is nested too deeply") from None
    except ValueError as wrong:
        found = _TOML_LINE.search(str(wrong))
        line = int(found[1]) if found else text.count("\n") + 1
        raise BadCatalogue(f"it is not TOML: {_TOML_LINE.sub('', str(wrong)).strip()[:200]}", line=line) from None
    return _Reader(text, architecture).entries(table)


class _Reader:
    """Reads the tables of a catalogue, and knows on which line each one begins."""

    def __init__(self, text: str, architecture: str) -> None:
        self._lines = text.split("\n")
        self._starts = [index for index, line in enumerate(self._lines) if _HEADER.match(line)]
        self._architecture = architecture

    def entries(self, table: Mapping[str, Any]) -> Mapping[str, Entry]:
        for name in table:
            if name != "image":
                raise self._bad(-1, name, "there is no such field: a catalogue has tables [[image]]")
        images = table.get("image", [])
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise self._bad(-1, "image", "expected tables [[image]]")
        if not images:
            raise BadCatalogue("it has no image")
        if len(images) > MOST_ENTRIES:
            raise BadCatalogue(f"it has {len(images)} images, and {MOST_ENTRIES} are allowed", remedy=_LARGE)
        found: dict[str, Entry] = {}
        for index, image in enumerate(images):
            entry = self._entry(index, image)
            if entry.name in found:
                raise self._bad(index, "name", f"{entry.name!r} is there twice")
            found[entry.name] = entry
        return found

    def _entry(self, index: int, image: Mapping[str, Any]) -> Entry:
        self._only(index, image, _FIELDS, "")
        name = self._text(index, image, "name", re.compile(IMAGE_NAME_PATTERN), f"a name: {IMAGE_NAME_RULE}")
        about = self._text(index, image, "about", _ABOUT, "one line of at most 100 characters")
        user = self._optional(index, image, "user", _USER, "the name of an account")
        ready = self._choice(index, image, "ready", READY_CHANNELS)
        first_boot = self._choice(index, image, "first-boot", FIRST_BOOTS)
        files = {arch: self._file(index, image[arch], arch) for arch in ARCHITECTURES if arch in image}
        if not files:
            raise self._bad(index, ARCHITECTURES[0], f"expected a table for {' or '.join(ARCHITECTURES)}")
        url, checksums, sha256 = files.get(self._architecture, (None, None, None))
        return Entry(name, about, url, checksums, sha256, user, ready, first_boot)

    def _file(self, index: int, given: Any, arch: str) -> tuple[str, str | None, str | None]:
        if not isinstance(given, dict):
            raise self._bad(index, arch, f"expected a table [image.{arch}]")
        self._only(index, given, _FILE_FIELDS, arch)
        url = self._address(index, given, "url", arch)
        assert url is not None
        checksums = self._address(index, given, "checksums", arch)
        sha256 = self._optional(index, given, "sha256", _SHA256, "64 lower-case hex digits", arch)
        if (checksums is None) == (sha256 is None):
            raise self._bad(index, f"{arch}.checksums", "expected either `checksums` or `sha256`")
        return url, checksums, sha256

    def _address(self, index: int, given: Mapping[str, Any], field: str, arch: str) -> str | None:
        take = self._text if field == "url" else self._optional
        address = take(index, given, field, _ADDRESS, "an http or https URL", arch)
        if address is None:
            return None
        try:
            parts = urlsplit(address)
            is_plain = bool(parts.hostname) and "@" not in parts.netloc and not parts.query and not parts.fragment
            _ = parts.port
        except ValueError:
            is_plain = False
        if not is_plain:
            # It is in the log for ever, and so would be a secret in it.
            raise self._bad(index, f"{arch}.{field}", "expected a URL without a password, a query or a fragment")
        return address

    def _text(
        self, index: int, given: Mapping[str, Any], field: str, pattern: re.Pattern[str], what: str, inside: str = ""
    ) -> str:
        path = f"{inside}.{field}" if inside else field
        if field not in given:
            raise self._bad(index, path, f"it is missing; expected {what}")
        value = given[field]
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise self._bad(index, path, f"it is {repr(value)[:80]}, expected {what}")
        return value

    def _optional(
        self, index: int, given: Mapping[str, Any], field: str, pattern: re.Pattern[str], what: str, inside: str = ""
    ) -> str | None:
        return self._text(index, given, field, pattern, what, inside) if field in given else None

    def _choice(self, index: int, given: Mapping[str, Any], field: str, choices: Sequence[str]) -> Any:
        value = given.get(field, "none")
        if value not in choices:
            raise self._bad(index, field, f"it is {repr(value)[:80]}, expected one of {', '.join(choices)}")
        return value

    def _only(self, index: int, given: Mapping[str, Any], known: Sequence[str], inside: str) -> None:
        for field in given:
            if field not in known:
                path = f"{inside}.{field}" if inside else field
                raise self._bad(index, path[:64], f"there is no such field: one of {', '.join(known)}")

    def _bad(self, index: int, field: str, what: str) -> BadCatalogue:
        line = self._line(index, field)
        return BadCatalogue(what, line=line, entry=0 if line else index + 1, field=field)

    def _line(self, index: int, field: str) -> int:
        """The line of a field of the image with this index, or that of its header, or 0 (in-line tables)."""
        if index < 0:
            begin, end = 0, len(self._lines)
        elif index < len(self._starts):
            begin = self._starts[index]
            end = self._starts[index + 1] if index + 1 < len(self._starts) else len(self._lines)
        else:
            return 0
        inside, _, last = field.rpartition(".")
        header = re.compile(rf"\s*\[+\s*image\s*\.\s*\"?{re.escape(inside or last)}\"?\s*\]")
        assigned = re.compile(rf"\s*\[*\s*\"?{re.escape(last)}\"?\s*[=\]]")
        at = begin
        if (found := next((line for line in range(begin, end) if header.match(self._lines[line])), None)) is not None:
            if not inside:
                return found + 1
            at = found
        return next((line for line in range(at, end) if assigned.match(self._lines[line])), max(at, 0)) + 1
