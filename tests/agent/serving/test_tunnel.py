"""The tunnel against a real WebSocket server that plays the gateway."""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from agent.serving import streams
from agent.serving.inward import Answer
from agent.serving.refusal import RefusedError
from agent.serving.streams import MAX_BODY, MAX_STREAMS
from agent.serving.tunnel import Tunnel
from agent.serving_protocol import TunnelRequest
from wire.tunnel import (
    CHUNK,
    SUBPROTOCOL,
    Frame,
    Kind,
    RequestHead,
    ResponseHead,
    ServedModel,
    Status,
    decode_frame,
    encode_frame,
)


class Gateway:
    def __init__(self) -> None:
        self.connections: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.tokens: list[str] = []
        self.refuse = False
        self.server: Server | None = None
        self.ended = asyncio.Event()

    async def check(self, _: ServerConnection, request: Request) -> Response | None:
        self.tokens.append(request.headers["Authorization"])
        return Response(401, "Unauthorized", Headers()) if self.refuse else None

    async def accept(self, connection: ServerConnection) -> None:
        await self.connections.put(connection)
        await asyncio.wait(
            {asyncio.ensure_future(connection.wait_closed()), asyncio.ensure_future(self.ended.wait())},
            return_when=asyncio.FIRST_COMPLETED,
        )

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"ws://127.0.0.1:{next(iter(self.server.sockets)).getsockname()[1]}/tunnel"

    def request(self, credential: str = "{}") -> TunnelRequest:
        return TunnelRequest(url=self.url, credential=credential, ca_file="")


class Device:
    """What the tunnel serves: answers with the request's own body unless told otherwise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, str], bytes]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = 0
        self.models = [ServedModel(name="m", version="1", build="b-1", ready=True, queued=0)]
        self.fail = False

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.calls.append((method, path, dict(headers), body))
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fail:
            raise RuntimeError("a bug")
        return Answer(200, {"content-type": "x/y"}, body)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    found = Gateway()
    async with serve(
        found.accept,
        "127.0.0.1",
        0,
        subprotocols=[SUBPROTOCOL],
        process_request=found.check,
        compression=None,
        close_timeout=0.1,
    ) as server:
        found.server = server
        yield found
        found.ended.set()


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
async def tunnel(gateway: Gateway, device: Device) -> AsyncIterator[Tunnel]:
    made = Tunnel(device.handle, lambda: device.models, lambda attempt: 0.005)
    yield made
    await made.close()


async def connected(gateway: Gateway, tunnel: Tunnel) -> ServerConnection:
    await tunnel.open(gateway.request())
    return await asyncio.wait_for(gateway.connections.get(), 10)


async def read(connection: ServerConnection) -> Frame:
    """Return the next frame that is not a STATUS."""
    while True:
        data = await asyncio.wait_for(connection.recv(), 10)
        assert isinstance(data, bytes)
        frame = decode_frame(data)
        if frame.kind is not Kind.STATUS:
            return frame


async def status(connection: ServerConnection) -> Status:
    while True:
        data = await asyncio.wait_for(connection.recv(), 10)
        assert isinstance(data, bytes)
        if (frame := decode_frame(data)).kind is Kind.STATUS:
            assert frame.stream == 0
            return msgspec.json.decode(frame.head, type=Status)


async def ask(
    connection: ServerConnection,
    stream: int,
    body: bytes = b"",
    path: str = "/v2/models/m/infer",
    method: str = "POST",
    declared: int | None = None,
    end: bool = True,
    deadline_ms: int = 5000,
) -> None:
    head = RequestHead(
        method=method,
        path=path,
        headers={"Content-Type": "application/json", "Content-Length": "999", "Muster-Deadline-Ms": "7"},
        deadline_ms=deadline_ms,
        body_bytes=len(body) if declared is None else declared,
    )
    data = msgspec.json.encode(head)
    chunks = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)] or [b""]
    for number, chunk in enumerate(chunks):
        kind, first = (Kind.REQUEST, data) if number == 0 else (Kind.BODY, b"")
        last = end and number == len(chunks) - 1
        await connection.send(encode_frame(Frame(kind, stream, first, chunk, last)))


async def answer(connection: ServerConnection) -> tuple[int, ResponseHead, bytes]:
    frame = await read(connection)
    assert frame.kind is Kind.RESPONSE
    head, body, stream = msgspec.json.decode(frame.head, type=ResponseHead), frame.body, frame.stream
    while not frame.end:
        frame = await read(connection)
        assert (frame.kind, frame.stream) == (Kind.BODY, stream)
        body += frame.body
    assert len(body) == head.body_bytes
    return stream, head, body


async def test_credential_subprotocol_and_status(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    assert tunnel.state == "none"
    await tunnel.open(gateway.request(credential='{"key_id":"ü"}'))
    connection = await asyncio.wait_for(gateway.connections.get(), 10)
    assert connection.subprotocol == SUBPROTOCOL
    kind, _, token = gateway.tokens[0].partition(" ")
    assert (kind, base64.urlsafe_b64decode(token).decode()) == ("Bearer", '{"key_id":"ü"}')
    assert (await status(connection)).models == device.models
    assert tunnel.state == "open"
    device.models = []
    tunnel.draining = True
    tunnel.poke()
    async with asyncio.timeout(0.5):  # at once, not with the next second
        assert await status(connection) == Status(models=[], draining=True)


async def test_a_request_and_its_answer(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    await ask(connection, 7, b"hello", path="/v2/models/m/infer?x=1")
    assert await answer(connection) == (
        7,
        ResponseHead(status=200, headers={"content-type": "x/y"}, body_bytes=5),
        b"hello",
    )
    method, path, headers, body = device.calls[0]
    assert (method, path, body) == ("POST", "/v2/models/m/infer?x=1", b"hello")
    assert 4000 < int(headers.pop("muster-deadline-ms")) <= 5000
    assert headers == {"content-type": "application/json"}


async def test_large_bodies_travel_in_chunks_both_ways(gateway: Gateway, tunnel: Tunnel) -> None:
    connection = await connected(gateway, tunnel)
    for body in (b"x" * CHUNK, b"y" * (CHUNK + 1), bytes(range(256)) * 1200):
        await ask(connection, len(body), body)
        assert (await answer(connection))[2] == body


async def test_many_requests_at_once_are_not_mixed_up(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    device.hold.clear()
    for number in range(1, 101):
        await ask(connection, number, str(number).encode())
    device.hold.set()
    found = [await answer(connection) for _ in range(100)]
    assert {stream: body for stream, _, body in found} == {n: str(n).encode() for n in range(1, 101)}


@pytest.mark.parametrize(
    ("path", "method", "status_"),
    [
        ("/control/v1/stop", "POST", 404),
        ("/", "GET", 404),
        ("/infer", "POST", 404),
        ("/healthy", "GET", 404),
        ("/v2/repository/models/m/unload", "POST", 404),
        ("/health", "DELETE", 405),
        ("/health", "GET", 200),
        ("/stats", "GET", 200),
        ("/metrics", "GET", 200),
        ("/v2", "GET", 200),
    ],
)
async def test_only_listed_paths_pass(
    gateway: Gateway, tunnel: Tunnel, device: Device, path: str, method: str, status_: int
) -> None:
    connection = await connected(gateway, tunnel)
    await ask(connection, 1, path=path, method=method)
    assert (await answer(connection))[1].status == status_
    assert len(device.calls) == (status_ == 200)


async def test_cancel_ends_the_request(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    device.hold.clear()
    await ask(connection, 1, b"a")
    async with asyncio.timeout(10):
        while not device.calls:
            await asyncio.sleep(0.001)
        await connection.send(encode_frame(Frame(Kind.CANCEL, 1, end=True)))
        await connection.send(encode_frame(Frame(Kind.CANCEL, 99, end=True)))
        while not device.cancelled:
            await asyncio.sleep(0.001)
    device.hold.set()
    await ask(connection, 1, b"b")
    assert (await answer(connection))[2] == b"b"


async def test_limits_are_answered(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    await ask(connection, 1, b"x", declared=MAX_BODY + 1, end=False)
    assert (await answer(connection))[1].status == 413
    await connection.send(encode_frame(Frame(Kind.BODY, 1, b"", b"late", True)))  # of the refused one: ignored
    await ask(connection, 2, b"x", declared=5)
    assert (await answer(connection))[1].status == 400
    await ask(connection, 3, b"xyz", declared=2)
    assert (await answer(connection))[1].status == 400
    device.hold.clear()
    for number in range(4, 4 + MAX_STREAMS):
        await ask(connection, number)
    await ask(connection, 9999)
    stream, head, _ = await answer(connection)
    assert (stream, head.status, head.headers["retry-after"]) == (9999, 503, "1")
    device.hold.set()
    assert {(await answer(connection))[1].status for _ in range(MAX_STREAMS)} == {200}


async def test_a_body_that_does_not_come_is_504_at_the_deadline(
    gateway: Gateway, tunnel: Tunnel, device: Device
) -> None:
    connection = await connected(gateway, tunnel)
    begun = asyncio.get_running_loop().time()
    await ask(connection, 1, b"x", declared=5, end=False, deadline_ms=100)
    stream, head, _ = await answer(connection)
    assert (stream, head.status) == (1, 504)
    assert 0.1 <= asyncio.get_running_loop().time() - begun < 0.6
    await connection.send(encode_frame(Frame(Kind.BODY, 1, b"", b"late", True)))
    await ask(connection, 2, b"x")
    assert (await answer(connection))[2] == b"x"
    assert len(device.calls) == 1


async def test_the_time_that_a_body_took_is_not_given_twice(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    await ask(connection, 1, b"x", declared=2, end=False)
    await asyncio.sleep(0.3)
    await connection.send(encode_frame(Frame(Kind.BODY, 1, b"", b"y", True)))
    assert (await answer(connection))[2] == b"xy"
    assert int(device.calls[0][2]["muster-deadline-ms"]) <= 4700


async def test_an_answer_that_is_on_its_way_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "GRACE_SECONDS", 0.02)
    taken: list[Frame] = []
    slow = asyncio.Event()

    async def put(frame: Frame) -> None:
        taken.append(frame)
        await slow.wait()  # a link that takes no more for now

    async def large(*_: object) -> Answer:
        return Answer(200, {}, b"x" * (2 * CHUNK))

    made = streams.Streams(large, put)
    head = RequestHead(method="GET", path="/v2", headers={}, deadline_ms=20, body_bytes=0)
    await made.accept(Frame(Kind.REQUEST, 1, msgspec.json.encode(head), b"", end=True))
    await asyncio.sleep(0.2)  # the deadline and the time of grace are long over
    slow.set()
    await asyncio.wait_for(made.answered(), 10)
    assert b"".join(frame.body for frame in taken) == b"x" * (2 * CHUNK)
    assert taken[-1].end


async def test_a_failing_request_leaves_the_tunnel_open(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    device.fail = True
    await ask(connection, 1)
    assert (await answer(connection))[1].status == 500
    device.fail = False
    await ask(connection, 2)
    assert (await answer(connection))[1].status == 200


@pytest.mark.parametrize("data", [b"no frame", "text", encode_frame(Frame(Kind.STATUS, 0))])
async def test_nonsense_closes_and_reconnects(gateway: Gateway, tunnel: Tunnel, data: bytes | str) -> None:
    connection = await connected(gateway, tunnel)
    await connection.send(data)
    again = await asyncio.wait_for(gateway.connections.get(), 10)
    await ask(again, 1, b"x")
    assert (await answer(again))[2] == b"x"


async def test_reconnects_with_the_newest_credential(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    device.hold.clear()
    await ask(connection, 1)
    async with asyncio.timeout(10):
        while not device.calls:
            await asyncio.sleep(0.001)
    await tunnel.open(gateway.request(credential="second"))
    assert tunnel.state == "open"
    await connection.close()
    await asyncio.wait_for(gateway.connections.get(), 10)
    assert base64.urlsafe_b64decode(gateway.tokens[-1].split()[1]) == b"second"
    assert device.cancelled == 1


async def test_a_gateway_that_reads_nothing_and_goes_does_not_stop_the_tunnel(
    gateway: Gateway, tunnel: Tunnel, device: Device
) -> None:
    connection = await connected(gateway, tunnel)
    connection.transport.pause_reading()
    for number in range(1, 13):
        await ask(connection, number, b"x" * 1024**2)
    async with asyncio.timeout(10):
        while len(device.calls) < 12:
            await asyncio.sleep(0.001)
    for number in range(100, 200):  # refused by the tunnel's reader itself, which cannot give the answers away
        await ask(connection, number, path="/nothing")
    await asyncio.sleep(0.05)
    connection.transport.abort()
    again = await asyncio.wait_for(gateway.connections.get(), 10)
    await ask(again, 1, b"x")
    assert (await answer(again))[2] == b"x"


async def test_a_renewed_tunnel_that_breaks_waits_like_the_others(gateway: Gateway, device: Device) -> None:
    waits: list[int] = []

    def delay(attempt: int) -> float:
        waits.append(attempt)
        return 0.2

    tunnel = Tunnel(device.handle, lambda: device.models, delay)
    connection = await connected(gateway, tunnel)
    await status(connection)
    await tunnel.open(gateway.request(credential="second"))
    await connection.close()
    begun = asyncio.get_running_loop().time()
    await asyncio.wait_for(gateway.connections.get(), 10)
    assert asyncio.get_running_loop().time() - begun >= 0.19
    assert waits == [1]
    await tunnel.close()


async def test_whatever_goes_wrong_the_tunnel_is_opened_again(gateway: Gateway, device: Device) -> None:
    too_long = ServedModel(name="m" * 20_000, version="1", build="b", ready=True, queued=0)  # no frame holds it
    asked = 0

    def served() -> list[ServedModel]:
        nonlocal asked
        asked += 1
        if asked == 1:
            return [too_long]
        if asked == 2:
            raise RuntimeError("a bug")
        return []

    tunnel = Tunnel(device.handle, served, lambda attempt: 0.001)
    connection = await connected(gateway, tunnel)
    for _ in range(2):
        await asyncio.wait_for(connection.wait_closed(), 10)
        connection = await asyncio.wait_for(gateway.connections.get(), 10)
    assert await status(connection) == Status(models=[])
    assert (tunnel.state, tunnel.error) == ("open", "")
    await tunnel.close()


async def test_finish_waits_until_the_answers_are_written(gateway: Gateway, tunnel: Tunnel, device: Device) -> None:
    connection = await connected(gateway, tunnel)
    device.hold.clear()
    await ask(connection, 1, b"x" * (40 * CHUNK))
    async with asyncio.timeout(10):
        while not device.calls:
            await asyncio.sleep(0.001)
    finished = asyncio.create_task(tunnel.finish())
    await asyncio.sleep(0.02)
    assert not finished.done()
    device.hold.set()
    await finished
    await tunnel.close()
    assert len((await answer(connection))[2]) == 40 * CHUNK


async def test_a_refusal_is_told_and_a_new_credential_is_tried_at_once(gateway: Gateway, device: Device) -> None:
    gateway.refuse = True
    waits: list[int] = []

    def delay(attempt: int) -> float:
        waits.append(attempt)
        return 1000.0

    tunnel = Tunnel(device.handle, lambda: device.models, delay)
    await tunnel.open(gateway.request())
    async with asyncio.timeout(10):
        while not waits:
            await asyncio.sleep(0.001)
    assert (tunnel.state, tunnel.error) == ("connecting", "the gateway refused the tunnel with status 401")
    gateway.refuse = False
    await tunnel.open(gateway.request(credential="new"))
    await asyncio.wait_for(gateway.connections.get(), 10)
    await tunnel.close()


async def test_nobody_there_is_tried_again(device: Device) -> None:
    waits: list[int] = []

    def delay(attempt: int) -> float:
        waits.append(attempt)
        return 0.001

    tunnel = Tunnel(device.handle, lambda: device.models, delay)
    await tunnel.open(TunnelRequest(url="ws://127.0.0.1:9/tunnel", credential="x", ca_file=""))
    async with asyncio.timeout(10):
        while len(waits) < 3:
            await asyncio.sleep(0.001)
    assert waits[:3] == [1, 2, 3]
    assert tunnel.state == "connecting"
    assert tunnel.error
    await tunnel.close()
    assert tunnel.state == "none"


async def test_an_address_without_tls_and_a_missing_ca_are_refused(tunnel: Tunnel) -> None:
    for url in ("ws://gateway.example/tunnel", "http://127.0.0.1/", "wss://gateway.example/"):
        with pytest.raises(RefusedError) as caught:
            await tunnel.open(TunnelRequest(url=url, credential="x", ca_file="/nowhere/ca.pem"))
        assert caught.value.status == 400
    assert tunnel.state == "none"
