"""A catalogue is read strictly, and what is wrong with it is told with its line and its field."""

from __future__ import annotations

from importlib import resources

import pytest

from aetherscale.actors.images.catalogue import reading
from aetherscale.actors.images.catalogue.reading import BadCatalogue, read
from aetherscale.actors.images.model.catalogued import Entry

GOOD = """\
# Ours.
[[image]]
name = "web"
about = "A web server"
user = "www"
ready = "agent"
first-boot = "credentials"

[image.x86_64]
url = "https://images.example/web.qcow2.xz"
checksums = "https://images.example/SHA256SUMS"

[[image]]
name = "db"
about = "A database"

[image.aarch64]
url = "https://images.example/db.img"
sha256 = "{sha}"
"""
SHA = "0f" * 32
TEXT = GOOD.replace("{sha}", SHA)


def failure(text: str | bytes) -> BadCatalogue:
    with pytest.raises(BadCatalogue) as failed:
        read(text.encode() if isinstance(text, str) else text, "x86_64")
    return failed.value


def test_entries_are_read_for_the_architecture_of_the_host() -> None:
    here = read(TEXT.encode(), "x86_64")
    assert here["web"] == Entry(
        "web",
        "A web server",
        "https://images.example/web.qcow2.xz",
        "https://images.example/SHA256SUMS",
        None,
        "www",
        "agent",
        "credentials",
    )
    assert here["db"] == Entry("db", "A database", None)
    there = read(TEXT.encode(), "aarch64")
    assert there["db"].sha256 == SHA
    assert there["web"].url is None


@pytest.mark.parametrize(
    ("found", "instead", "line", "field"),
    [
        ('name = "web"', 'name = "Web"', 3, "name"),
        ('name = "web"', "name = 7", 3, "name"),
        ('name = "web"\n', "", 2, "name"),
        ('name = "db"', 'name = "web"', 14, "name"),
        ('about = "A database"', 'about = "two\\nlines"', 15, "about"),
        ('about = "A database"', f'about = "{"a" * 101}"', 15, "about"),
        ('user = "www"', 'user = "root; reboot"', 5, "user"),
        ('ready = "agent"', 'ready = "soon"', 6, "ready"),
        ('first-boot = "credentials"', "first-boot = true", 7, "first-boot"),
        ('user = "www"', 'usr = "www"', 5, "usr"),
        ("[image.x86_64]", "[image.vax]", 9, "vax"),
        ('"https://images.example/web.qcow2.xz"', '"file:///etc/shadow"', 10, "x86_64.url"),
        ('"https://images.example/web.qcow2.xz"', '"https://u:p@images.example/w"', 10, "x86_64.url"),
        ('"https://images.example/web.qcow2.xz"', '"https://images.example/w?sig=1"', 10, "x86_64.url"),
        ('"https://images.example/web.qcow2.xz"', '"https://images.example:x/w"', 10, "x86_64.url"),
        ('url = "https://images.example/web.qcow2.xz"\n', "", 9, "x86_64.url"),
        ('checksums = "https://images.example/SHA256SUMS"\n', "", 9, "x86_64.checksums"),
        ('"https://images.example/SHA256SUMS"', '"/SHA256SUMS"', 11, "x86_64.checksums"),
        ("[image.aarch64]\n", '[image.aarch64]\nchecksums = "https://h/S"\n', 18, "aarch64.checksums"),
        (f'"{SHA}"', f'"{SHA[:-1]}"', 19, "aarch64.sha256"),
        (f'"{SHA}"', f'"{SHA.upper()}"', 19, "aarch64.sha256"),
        ("[image.aarch64]\n", "[image.aarch64]\nmd5 = 1\n", 18, "aarch64.md5"),
        ("# Ours.", "version = 1", 1, "version"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_field(found: str, instead: str, line: int, field: str) -> None:
    assert found in TEXT
    wrong = failure(TEXT.replace(found, instead, 1))
    assert (wrong.line, wrong.field) == (line, field)
    assert str(wrong).startswith(f"line {line}, field {field!r}: ")


def test_an_entry_for_no_architecture_is_refused() -> None:
    assert failure('[[image]]\nname = "a"\nabout = "b"\n').field == "x86_64"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no image"),
        ("image = []", "it has no image"),
        ("image = 7", "expected tables [[image]]"),
        ("[image]\nname = 1", "expected tables [[image]]"),
        ("[[image]]\nname = ", "line 2: it is not TOML"),
        (b"# \xff", "line 1: it is not UTF-8"),
        ("\n\na = " + "[" * 5000, ""),
    ],
)
def test_what_is_no_catalogue_is_refused(text: str | bytes, said: str) -> None:
    assert said in str(failure(text))


def test_where_no_line_can_be_named_the_image_is() -> None:
    good = f'{{name = "a", about = "b", x86_64 = {{url = "http://h/i", sha256 = "{SHA}"}}}}'
    bad = good.replace('"b"', "7")
    wrong = failure(f"image = [\n{good},\n{bad}]")
    assert (wrong.line, wrong.entry, wrong.field) == (0, 2, "about")
    assert str(wrong).startswith("image 2, field 'about': it is 7, expected")
    assert wrong.remedy.startswith("correct that image;")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("version = 1", "correct that line; docs/images.md has the fields"),
        ("[[image]]\nname = ", "correct that line; docs/images.md has the fields"),
        ("", "correct it; docs/images.md has the fields"),
        (b" " * (reading.MOST_BYTES + 1), "leave out what nobody fetches"),
    ],
)
def test_a_line_is_spoken_of_only_where_one_is_named(text: str | bytes, remedy: str) -> None:
    wrong = failure(text)
    assert wrong.remedy == remedy
    assert ("line" in remedy) == str(wrong).startswith("line ")


def test_a_catalogue_is_bounded() -> None:
    assert "are allowed" in str(failure(TEXT.encode().ljust(reading.MOST_BYTES + 1)))
    assert read(TEXT.encode().ljust(reading.MOST_BYTES), "x86_64")
    each = '[[image]]\nname = "i{}"\nabout = "a"\nx86_64 = {{ url = "http://h/i", sha256 = "' + SHA + '" }}\n'
    many = "".join(each.format(number) for number in range(reading.MOST_ENTRIES))
    assert len(read(many.encode(), "x86_64")) == reading.MOST_ENTRIES
    assert "are allowed" in str(failure(many + each.format("-one-more")))


def test_the_shipped_one_has_what_it_promises_with_checksums_over_https() -> None:
    raw = resources.files("aetherscale.actors.images.catalogue").joinpath("images.toml").read_bytes()
    for architecture in reading.ARCHITECTURES:
        entries = read(raw, architecture)
        assert set(entries) == {"debian-12", "debian-13", "ubuntu-24.04", "fedora", "alpine", "rocky"}
        for entry in entries.values():
            assert entry.url is not None
            assert entry.checksums is not None
            assert entry.url.startswith("https://")
            assert entry.checksums.startswith("https://")
            assert entry.url.split("/")[2] == entry.checksums.split("/")[2]
            assert entry.user
