"""Requests that are answered while they are sent: the answer is the right one, and an error has the kernel's words."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from aetherscale.actors.network.netlink import encoding
from aetherscale.actors.network.netlink.direct import NLM_F_CREATE, NLM_F_EXCL, Direct, Failed
from aetherscale.actors.network.netlink.encoding import RTM_GETLINK, RTM_NEWLINK
from aetherscale.actors.network.netlink.messages import link_of
from tests.support.network_devices import namespace
from tests.support.network_namespaces import missing

__all__ = ["namespace"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def direct(namespace: None) -> Iterator[Direct]:
    with closing(Direct()) as opened:
        yield opened


def make(direct: Direct, name: str) -> None:
    direct.ask(
        RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, encoding.link(attributes=encoding.name(name) + encoding.bridge())
    )


def find(direct: Direct, name: str) -> str:
    (answer,) = direct.ask(RTM_GETLINK, 0, encoding.link(attributes=encoding.name(name)))
    link = link_of(answer)
    assert link is not None
    return link.name


def test_an_error_is_of_its_own_request_and_the_next_is_answered(direct: Direct) -> None:
    make(direct, "br0")
    for _ in range(3):
        with pytest.raises(Failed) as failed:
            make(direct, "br0")
        assert failed.value.code == errno.EEXIST
        assert find(direct, "br0") == "br0"


def test_an_error_has_the_words_of_the_kernel(direct: Direct) -> None:
    make(direct, "br0")
    (answer,) = direct.ask(RTM_GETLINK, 0, encoding.link(attributes=encoding.name("br0")))
    link = link_of(answer)
    assert link is not None
    with pytest.raises(Failed, match="Invalid argument: mtu greater than device maximum") as failed:
        direct.ask(RTM_NEWLINK, 0, encoding.link(link.index, encoding.mtu(1_000_000)))
    assert failed.value.code == errno.EINVAL


def test_an_answer_that_somebody_was_interrupted_at_reading_is_for_nobody(direct: Direct) -> None:
    make(direct, "br0")
    body = encoding.link(attributes=encoding.name("lo"))
    direct._socket.send(struct.pack("=IHHII", 16 + len(body), RTM_GETLINK, 5, 77, 0) + body)
    assert find(direct, "br0") == "br0"


def test_a_socket_that_is_closed_is_an_error(direct: Direct) -> None:
    direct.close()
    direct.close()
    with pytest.raises(Failed) as failed:
        find(direct, "lo")
    assert failed.value.code == errno.EBADF
