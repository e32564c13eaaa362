"""User-data for cloud-init, as callers send it."""

from __future__ import annotations

import pytest

from aetherscale.actors.compute.model.userdata import MAX_USER_DATA_BYTES, checked_user_data
from aetherscale.kernel.errors import Reason, Refused

KINDS = [
    "#cloud-config\npassword: correct-horse\n",
    "#cloud-config\r\npackages: [nginx]\r\n",
    "#!/bin/sh\necho correct-horse\n",
    "#include\nhttps://example.org/user-data\n",
    "#include-once\nhttps://example.org/user-data\n",
    "#cloud-boothook\n#!/bin/sh\n",
    "#cloud-config-archive\n- type: text/cloud-config\n",
    "## template: jinja\n#cloud-config\n{}\n",
    "#part-handler\n",
    'Content-Type: multipart/mixed; boundary="x"\nMIME-Version: 1.0\n\n--x--\n',
    'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="x"\n\n--x--\n',
    "content-type: multipart/mixed; boundary=x\n\n--x--\n",
]


@pytest.mark.parametrize("text", KINDS)
def test_what_cloud_init_knows_is_handed_on_byte_by_byte(text: str) -> None:
    assert checked_user_data(text) == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "correct-horse: battery\n",
        " #cloud-config\n",
        "\ufeff#cloud-config\n",
        "\n#cloud-config\n",
        "# cloud-config\n",
        "#cloud-config\na: \0correct-horse\n",
        "Content-Type: text/html\n\n<p>correct-horse</p>\n",
        "{}",
        "\x1f\ufffd\b",
    ],
)
def test_what_it_could_make_nothing_of_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Refused) as refused:
        checked_user_data(text)
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "cloud-init")
    assert "correct-horse" not in refused.value.message


def test_user_data_as_large_as_it_may_be_and_no_larger() -> None:
    begun = "#cloud-config\n"
    assert len(checked_user_data(begun + "#" * (MAX_USER_DATA_BYTES - len(begun)))) == MAX_USER_DATA_BYTES
    for rest in (
        "#" * (MAX_USER_DATA_BYTES - len(begun) + 1),
        "\u00fc" * ((MAX_USER_DATA_BYTES - len(begun)) // 2 + 1),
    ):
        with pytest.raises(Refused) as refused:
            checked_user_data(begun + rest)
        assert refused.value.reason is Reason.TOO_LARGE
