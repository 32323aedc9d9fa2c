"""One tunnel without a network: which frames go out when, and what is made of those that come in."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from controller.routing import tunnels
from controller.routing.attempt import Outcome
from controller.routing.budget import Budget
from controller.routing.standings import LiveDevice
from controller.routing.tunnels import Tunnel
from wire.tunnel import CHUNK, Frame, Kind, RequestHead, ResponseHead, Status, decode_frame, encode_frame


class Far:
    """The other end: what was sent to it, and what it says. ``gate``: closed while it reads nothing."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.closed: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.said: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def send(self, message):
        await self.gate.wait()
        if message["type"] == "websocket.close":
            self.closed.append(message["code"])
        else:
            self.frames.append(decode_frame(message["bytes"]))

    def say(self, frame: Frame) -> None:
        self.said.put_nowait({"type": "websocket.receive", "bytes": encode_frame(frame)})

    def kinds(self) -> list[tuple[int, Kind]]:
        return [(frame.stream, frame.kind) for frame in self.frames]


def head(size: int) -> RequestHead:
    return RequestHead(method="POST", path="/v2/models/m/infer", headers={}, deadline_ms=1000, body_bytes=size)


def answer(stream: int, body: bytes, *, announced: int | None = None, end: bool = True) -> Frame:
    size = len(body) if announced is None else announced
    fields = ResponseHead(status=200, headers={}, body_bytes=size)
    return Frame(Kind.RESPONSE, stream, msgspec.json.encode(fields), body, end)


@pytest.fixture
async def far():
    return Far()


@pytest.fixture
async def late():
    return []


@pytest.fixture
async def tunnel(far, late):
    made = Tunnel(
        LiveDevice("d-a", "t", 128, 0.0),
        far.send,
        Budget(10 * 1024**2),
        max_answer=1024**2,
        on_status=lambda tunnel, status: None,
        on_close=lambda tunnel: None,
        on_late=lambda: late.append(1),
    )
    task = asyncio.create_task(made.run(far.said.get))
    yield made
    far.gate.set()
    made.close(1000, "the test is over")
    await asyncio.wait_for(task, 5)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_large_body_gives_way_after_each_chunk(tunnel, far):
    far.gate.clear()
    large, small = b"x" * (3 * CHUNK + 5), b"y"
    assert tunnel.open(head(len(large)), large)
    await settle()
    assert tunnel.open(head(1), small)
    far.gate.set()
    await settle()
    assert far.kinds() == [
        (1, Kind.REQUEST),
        (2, Kind.REQUEST),
        (1, Kind.BODY),
        (1, Kind.BODY),
        (1, Kind.BODY),
    ]
    assert b"".join(frame.body for frame in far.frames if frame.stream == 1) == large
    assert [frame.end for frame in far.frames] == [False, True, False, False, True]


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK])
async def test_a_body_arrives_whole_and_ends_once(tunnel, far, size):
    tunnel.open(head(size), b"z" * size)
    await settle()
    assert sum(len(frame.body) for frame in far.frames) == size
    assert [frame.end for frame in far.frames] == [False] * (len(far.frames) - 1) + [True]


async def test_what_waits_is_bounded_in_requests(tunnel, far):
    far.gate.clear()
    opened = [tunnel.open(head(1), b"x") for _ in range(tunnels.MAX_STREAMS + 5)]
    assert [one is None for one in opened] == [False] * tunnels.MAX_STREAMS + [True] * 5
    assert tunnel.live.outstanding == tunnels.MAX_STREAMS
    for _ in range(3):  # a device that reads nothing, requests that are given up: nothing piles up
        for one in opened:
            if one is not None:
                tunnel.drop(one)
        opened = [tunnel.open(head(1), b"x") for _ in range(tunnels.MAX_STREAMS)]
    assert len(tunnel._turns) <= tunnels.MAX_STREAMS
    assert len(tunnel._cancels) <= 1


async def test_what_waits_is_bounded_in_bytes(tunnel, far, monkeypatch):
    monkeypatch.setattr(tunnels, "MAX_UNSENT", 100)
    far.gate.clear()
    first = tunnel.open(head(90), b"x" * 90)
    assert first is not None
    assert tunnel.open(head(11), b"x" * 11) is None
    tunnel.drop(first)
    assert tunnel.open(head(100), b"x" * 100) is not None
    far.gate.set()
    await settle()
    assert tunnel.open(head(100), b"x" * 100) is not None


async def test_a_body_that_is_larger_than_what_may_wait_goes_alone(tunnel, far, monkeypatch):
    monkeypatch.setattr(tunnels, "MAX_UNSENT", 100)
    far.gate.clear()
    large = tunnel.open(head(101), b"x" * 101)
    assert large is not None
    assert tunnel.open(head(1), b"x") is None
    tunnel.drop(large)
    assert tunnel.open(head(1), b"x") is not None


async def test_an_answer_comes_in_pieces(tunnel, far):
    stream = tunnel.open(head(0), b"")
    far.say(answer(1, b"ab", announced=5, end=False))
    far.say(Frame(Kind.BODY, 1, b"", b"cd"))
    far.say(Frame(Kind.BODY, 1, b"", b"e", True))
    assert await asyncio.wait_for(stream.done, 5) is Outcome.ANSWERED
    assert stream.body == b"abcde"
    assert tunnel.budget.used == 5
    tunnel.drop(stream)
    stream.release()
    assert tunnel.budget.used == 0
    assert tunnel.live.outstanding == 0
    await settle()
    assert far.kinds() == [(1, Kind.REQUEST)]  # nothing to cancel


async def test_a_request_that_nobody_wants_is_cancelled_where_it_was_begun(tunnel, far):
    far.gate.clear()
    begun = tunnel.open(head(3 * CHUNK), b"x" * 3 * CHUNK)
    await settle()  # its first frame is being written
    never = tunnel.open(head(1), b"y")
    tunnel.drop(begun)
    tunnel.drop(never)
    far.gate.set()
    await settle()
    assert far.kinds() == [(1, Kind.REQUEST), (1, Kind.CANCEL)]
    assert tunnel._unsent == 0


async def test_an_early_answer_stops_the_rest_of_the_request(tunnel, far):
    far.gate.clear()
    stream = tunnel.open(head(3 * CHUNK), b"x" * 3 * CHUNK)
    await settle()
    far.say(answer(1, b"too large"))
    assert await asyncio.wait_for(stream.done, 5) is Outcome.ANSWERED
    tunnel.drop(stream)
    far.gate.set()
    await settle()
    assert far.kinds() == [(1, Kind.REQUEST), (1, Kind.CANCEL)]


async def test_a_late_answer_is_counted_once_and_dropped(tunnel, far, late):
    stream = tunnel.open(head(0), b"")
    await settle()
    stream.end(Outcome.TIMEOUT)
    tunnel.drop(stream)
    far.say(answer(1, b"ab", announced=4, end=False))
    far.say(Frame(Kind.BODY, 1, b"", b"cd", True))
    await settle()
    assert late == [1]
    assert not tunnel.closed
    assert tunnel.budget.used == 0


async def test_an_answer_that_nobody_asked_for_closes_the_tunnel(tunnel, far, late):
    stream = tunnel.open(head(0), b"")
    far.say(answer(2, b""))
    assert await asyncio.wait_for(stream.done, 5) is Outcome.LOST
    assert tunnel.closed
    assert late == []
    await settle()
    assert far.closed == [1002]


async def test_an_answer_for_which_there_is_no_room_is_refused(tunnel, far):
    assert tunnel.budget.take("other", 10 * 1024**2 * 3 // 4)
    assert tunnel.budget.take("t", 10 * 1024**2 * 3 // 16 - 3)
    before = tunnel.budget.used
    stream = tunnel.open(head(0), b"")
    far.say(answer(1, b"abcd"))
    assert await asyncio.wait_for(stream.done, 5) is Outcome.SATURATED
    tunnel.drop(stream)
    stream.release()
    assert tunnel.budget.used == before


async def test_a_status_is_looked_at_when_it_differs(far):
    said = []
    made = Tunnel(
        LiveDevice("d-a", "t", 128, 0.0), far.send, Budget(10), max_answer=1,
        on_status=lambda tunnel, status: said.append(status.draining), on_close=lambda tunnel: None,
        on_late=lambda: None,
    )  # fmt: skip
    task = asyncio.create_task(made.run(far.said.get))
    for draining in (False, False, True, True, False):
        far.say(Frame(Kind.STATUS, 0, msgspec.json.encode(Status(models=[], draining=draining))))
    await settle()
    assert said == [False, True, False]
    made.close(1000, "the test is over")
    await asyncio.wait_for(task, 5)


async def test_a_closed_tunnel_takes_nothing_and_settles_everything(tunnel, far):
    streams = [tunnel.open(head(1), b"x") for _ in range(3)]
    tunnel.close(1012, "bye")
    assert [one.done.result() for one in streams] == [Outcome.LOST] * 3
    assert tunnel.open(head(1), b"x") is None
    for one in streams:
        tunnel.drop(one)
    assert tunnel.live.outstanding == 0


async def test_a_tunnel_that_was_closed_before_it_began_ends_at_once(far):
    gone = []
    made = Tunnel(
        LiveDevice("d-a", "t", 128, 0.0), far.send, Budget(10), max_answer=1, on_status=lambda tunnel, status: None,
        on_close=gone.append, on_late=lambda: None,
    )  # fmt: skip
    made.close(4003, "the device was revoked")
    await asyncio.wait_for(made.run(far.said.get), 5)
    assert far.closed == [4003]
    assert gone == [made]


async def test_a_device_that_reads_nothing_does_not_hold_the_end(far, late):
    made = Tunnel(
        LiveDevice("d-a", "t", 128, 0.0), far.send, Budget(10), max_answer=1, on_status=lambda tunnel, status: None,
        on_close=lambda tunnel: None, on_late=lambda: None,
    )  # fmt: skip
    task = asyncio.create_task(made.run(far.said.get))
    await settle()
    far.gate.clear()
    made.close(1012, "bye")
    await asyncio.wait_for(task, 5)


async def test_stream_numbers_are_never_used_twice(tunnel):
    tunnel._next = tunnels.LAST_STREAM
    assert tunnel.open(head(0), b"") is None
    assert tunnel.closed
