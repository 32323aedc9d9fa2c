"""Writes of one turn of the loop: together, in order, and never held for long."""

from __future__ import annotations

import asyncio

import pytest

from controller.joined_writes import MAX_HELD, JoinedWrites


class Transport:
    """The far side: what was written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data):
        self.written.append(data)

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True

    def get_extra_info(self, name):
        return f"the transport's {name}"


@pytest.fixture
async def pair():
    transport = Transport()
    return transport, JoinedWrites(transport, asyncio.get_running_loop())


async def test_writes_of_one_turn_go_out_together_and_in_order(pair):
    transport, joined = pair
    joined.write(b"a")
    joined.write(b"b")
    assert transport.written == []
    await asyncio.sleep(0)
    assert transport.written == [b"ab"]
    joined.write(b"c")
    await asyncio.sleep(0)
    assert transport.written == [b"ab", b"c"]


async def test_much_is_not_held(pair):
    transport, joined = pair
    joined.write(b"a")
    joined.write(b"b" * MAX_HELD)
    assert transport.written == [b"a" + b"b" * MAX_HELD]
    await asyncio.sleep(0)
    assert len(transport.written) == 1


async def test_what_is_held_goes_out_before_the_end(pair):
    transport, joined = pair
    joined.write(b"a")
    joined.close()
    assert transport.written == [b"a"]
    assert transport.closing
    joined.write(b"b")  # after the end there is nobody to read it
    await asyncio.sleep(0)
    assert transport.written == [b"a"]


async def test_everything_else_is_the_transports_own(pair):
    assert pair[1].get_extra_info("peername") == "the transport's peername"
    assert pair[1].is_closing() is False
