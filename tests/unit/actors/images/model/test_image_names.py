"""The name of an image that was given none, made of its source."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.images.model.commands import name_from
from aetherscale.kernel.errors import Refused


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/srv/Debian-12_generic.qcow2", "debian-12_generic"),
        ("https://h/a/web.img.xz?raw=true#x", "web"),
        ("https://h/a%2Fb%20c.img", "b-c"),
        ("https://h/%c3%a9tude.img", "tude"),
        ("/srv/disk.raw.zst", "disk"),
    ],
)
def test_a_name_is_made_of_the_last_part(source: str, name: str) -> None:
    assert name_from(source) == name


@pytest.mark.parametrize("source", ["https://web", "https://h/", "/srv/123.img", "/", "https://h?web.img", "/é"])
def test_of_what_has_no_name_none_is_made(source: str) -> None:
    with pytest.raises(Refused, match="no name can be made from"):
        name_from(source)


@given(
    st.from_regex(r"\A(https?://[a-z:0-9]{1,9})?/[a-zA-Z0-9%./?#é_ -]{0,40}\Z"),
)
def test_a_source_is_read_as_the_library_reads_urls(source: str) -> None:
    try:
        last = unquote(urlsplit(source).path).rsplit("/", 1)[-1].lower()
    except ValueError:
        return
    bare = re.sub(r"\.(qcow2|qcow|img|raw|iso)\Z", "", re.sub(r"\.(xz|gz|zst|zstd)\Z", "", last))
    expected = re.sub(r"[^a-z0-9._-]+", "-", bare)[:63].strip("-._")
    try:
        assert name_from(source) == expected
    except Refused:
        assert re.fullmatch(r"[a-z]([a-z0-9._-]*[a-z0-9])?", expected) is None
