"""Asks for every image of a catalogue: is it there, and does its file of checksums vouch for it? Fetches no image.

    python -m tools.catalogue              the catalogue of the program
    python -m tools.catalogue FILE|URL     another one

A line for each file, with its size; exit 1 where one is missing.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib import resources
from ipaddress import ip_network
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from aetherscale.actors.images.catalogue.reading import ARCHITECTURES, MOST_BYTES, BadCatalogue, read
from aetherscale.actors.images.catalogue.sums import MOST_BYTES as MOST_SUMS_BYTES
from aetherscale.actors.images.catalogue.sums import NoDigest, digest_in
from aetherscale.actors.images.fetching import words
from aetherscale.actors.images.fetching.download import plain
from aetherscale.actors.images.fetching.texts import fetch_text
from aetherscale.actors.images.fetching.transfer import Limits
from aetherscale.actors.images.model.catalogued import Entry
from aetherscale.kernel.fault import Fault

ANYWHERE: Final = Limits(networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))
HEAD_TIMEOUT_S: Final = 30.0


def main(arguments: Sequence[str]) -> int:
    """Check a catalogue, and say what is wrong with it."""
    try:
        raw = _raw(arguments[0]) if arguments else _shipped()
        entries = list(_entries(raw))
    except (BadCatalogue, Fault) as wrong:
        print(f"no catalogue: {wrong}")
        return 1
    except OSError as wrong:
        print(f"no catalogue: {arguments[0]} cannot be read: {wrong.strerror}")
        return 1
    failed = 0
    for architecture, entry in entries:
        trouble, size_bytes = check(entry)
        failed += bool(trouble)
        said = trouble or f"{size_bytes / (1 << 20):.0f} MiB" if size_bytes is not None else trouble or "size not said"
        print(f"{'FAILED' if trouble else 'ok':6}  {entry.name}  {architecture}  {said}")
    print(f"{len(entries) - failed} of {len(entries)} files are there, each with its checksum")
    return 1 if failed else 0


def check(entry: Entry) -> tuple[str, int | None]:
    """What is wrong with the file of an entry, or ""; and its size in bytes, where its server says it."""
    assert entry.url is not None
    try:
        request = urllib.request.Request(entry.url, method="HEAD")  # noqa: S310 - the catalogue has http and https only
        with urllib.request.urlopen(request, timeout=HEAD_TIMEOUT_S) as response:  # noqa: S310 - likewise
            size_bytes = response.length
    except urllib.error.HTTPError as error:
        return f"{entry.url}: the server answered {error.code} {plain(error.reason)}", None
    except (OSError, http.client.HTTPException) as error:
        return f"{entry.url}: {_why(error, entry.url)}", None
    if entry.checksums is not None:
        try:
            raw = asyncio.run(fetch_text(entry.checksums, MOST_SUMS_BYTES, ANYWHERE))
            digest_in(raw, unquote(urlsplit(entry.url).path).rsplit("/", 1)[-1])
        except (Fault, NoDigest) as missing:
            return f"{entry.checksums}: {missing}", size_bytes
    return "", size_bytes


def _why(error: OSError | http.client.HTTPException, url: str) -> str:
    """In words for people. What urllib cannot connect to is the reason of its own error."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return words.to_connect(error.reason, parts.hostname or "", port, HEAD_TIMEOUT_S).what
    return words.talking(error, HEAD_TIMEOUT_S).what


def _entries(raw: bytes) -> Iterator[tuple[str, Entry]]:
    for architecture in ARCHITECTURES:
        for entry in read(raw, architecture).values():
            if entry.url is not None:
                yield architecture, entry


def _raw(source: str) -> bytes:
    if source.startswith(("http://", "https://")):
        return asyncio.run(fetch_text(source, MOST_BYTES, ANYWHERE))
    return Path(source).read_bytes()


def _shipped() -> bytes:
    return resources.files("aetherscale.actors.images.catalogue").joinpath("images.toml").read_bytes()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
