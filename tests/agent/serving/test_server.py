"""The HTTP interface over real sockets, with a model whose pace the test controls."""

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest

from agent.serving import listen
from agent.serving.body import MAX_BODY, MAX_READING
from agent.serving.build import Build
from agent.serving.hosting import HttpServer
from agent.serving.models import Models
from agent.serving.page import page, read_status
from agent.serving.server import Server
from tests.agent.serving.builds import answer, as_json, make_model, request


class Served:
    def __init__(self, models: Models, port: int) -> None:
        self.models = models
        self.port = port
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    async def infer(self, body: object, path: str = "/v2/models/tiny/infer", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else as_json(body)
        return await self.http.post(path, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    models = Models()
    for name, seed, work in (("tiny", 1, 0), ("slow", 1, 384)):
        file = make_model(tmp_path / name / "model.onnx", seed, work=work)
        await models.serve(Build(model=name, version="3", build=f"{name}-3", file=file, max_batch=4))
    made = listen.tcp("127.0.0.1", 0)
    server = HttpServer(Server(models))
    task = asyncio.create_task(server.serve(sockets=[made]))
    found = Served(models, made.getsockname()[1])
    yield found
    await found.http.aclose()
    server.end()
    await task
    await models.close()


async def test_answers_by_the_protocol(served: Served) -> None:
    for path in ("/v2/models/tiny/infer", "/v2/models/tiny/versions/3/infer"):
        reply = await served.infer(request(2, id="a"), path)
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "application/json"
        body = reply.json()
        assert (body["model_name"], body["model_version"], body["id"]) == ("tiny", "3", "a")
        assert body["outputs"][0]["shape"] == [2, 3]
        assert body["outputs"][0]["data"] == pytest.approx(answer(2), abs=1e-5)
    only = (await served.infer(request(outputs=[{"name": "label"}]))).json()["outputs"]
    assert [tensor["name"] for tensor in only] == ["label"]


async def test_describes_itself(served: Served) -> None:
    get = served.http.get
    assert (await get("/v2")).json()["name"] == "muster-serving"
    assert (await get("/v2/health/live")).json() == {"live": True}
    assert (await get("/v2/health/ready")).status_code == 200
    model = (await get("/v2/models/tiny")).json()
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 8]}]
    assert model["versions"] == ["3"]
    assert (await get("/v2/models/tiny/versions/3/ready")).json()["ready"] is True
    health = (await get("/health")).json()
    assert health["status"] == "ok"
    assert {model["name"] for model in health["models"]} == {"tiny", "slow"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", "/v2/models/none/infer", request(), 404, "no model 'none' is served; served are: slow, tiny"),
        ("POST", "/v2/models/tiny/versions/9/infer", request(), 404, "version '9'"),
        ("POST", "/v2/models/tiny/infer", b"{", 400, "not JSON"),
        ("POST", "/v2/models/tiny/infer", b"", 400, "not JSON"),
        ("POST", "/v2/models/tiny/infer", {"inputs": []}, 400, "is missing"),
        ("POST", "/infer", request(), 400, 'say which "model"; served are: slow, tiny'),
        ("POST", "/infer", {"model": 3}, 400, '"model" must be a text'),
        ("POST", "/infer", [], 400, 'say which "model"'),
        ("POST", "/batch_infer", {"requests": []}, 400, "1 to 256 requests"),
        ("GET", "/v2/models/tiny/infer", b"", 405, "GET is not possible here"),
        ("GET", "/infer", b"", 405, "GET is not possible here"),
        ("POST", "/health", b"", 405, "POST is not possible here"),
        ("GET", "/v2/models/none", b"", 404, "no model 'none'"),
        ("GET", "/v2/models/none/ready", b"", 404, "no model 'none'"),
        ("GET", "/nothing", b"", 404, "nothing is at /nothing"),
        ("POST", "/v2/repository/index", b"", 404, "nothing is at"),
    ],
)
async def test_errors_are_plain(served: Served, method: str, path: str, body: object, status: int, reason: str) -> None:
    content = body if isinstance(body, bytes) else as_json(body)
    reply = await served.http.request(method, path, content=content)
    assert reply.status_code == status
    assert reason in reply.json()["error"]


async def test_infer_needs_no_model_when_there_is_one(served: Served) -> None:
    named = await served.infer(request(model="tiny"), "/infer")
    assert named.json()["outputs"][0]["data"] == pytest.approx(answer(), abs=1e-5)
    await served.models.remove("slow")
    assert (await served.infer(request(), "/infer")).json()["model_name"] == "tiny"


async def test_batch_answers_each_by_itself(served: Served) -> None:
    requests = [request(model="tiny"), request(2, model="tiny"), request(model="none"), {"model": "tiny", "inputs": 3}]
    reply = await served.infer({"requests": requests}, "/batch_infer")
    assert reply.status_code == 200
    first, second, third, fourth = reply.json()["responses"]
    assert first["outputs"][0]["data"] == pytest.approx(answer(), abs=1e-5)
    assert second["outputs"][0]["data"] == pytest.approx(answer(2), abs=1e-5)
    assert (third["status"], fourth["status"]) == (404, 400)
    outcomes = (await served.http.get("/stats")).json()["outcomes"]["tiny"]
    assert outcomes == {"ok": 2, "bad_request": 1}


async def test_a_body_over_the_limit_is_refused_before_and_while_it_comes(served: Served) -> None:
    reply = await served.infer(b" " * (MAX_BODY + 1))
    assert reply.status_code == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 65_536 + 2):
            yield b" " * 65_536

    reply = await served.http.post("/v2/models/tiny/infer", content=endless())
    assert reply.status_code == 413
    assert (await served.infer(request())).status_code == 200


async def test_a_body_in_pieces_is_one_body(served: Served) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in as_json(request()):
            yield bytes((byte,))

    reply = await served.http.post("/v2/models/tiny/infer", content=pieces())
    assert reply.json()["outputs"][0]["data"] == pytest.approx(answer(), abs=1e-5)


async def announce(served: Served, size: int, body: bytes, deadline_ms: int) -> tuple[StreamReader, StreamWriter]:
    """Begin a request of ``size`` bytes of which only ``body`` is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = "POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nMuster-Deadline-Ms: {}\r\nContent-Length: {}\r\n\r\n"
    writer.write(head.format(deadline_ms, size).encode() + body)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("body", [b"", b"{"])
async def test_a_body_that_does_not_come_is_408(served: Served, body: bytes) -> None:
    reader, writer = await announce(served, 100, body, deadline_ms=100)
    async with asyncio.timeout(10):
        assert b" 408 " in await reader.readline()
    writer.close()


async def test_bodies_on_their_way_are_bounded_together(served: Served) -> None:
    part = b" " * (MAX_BODY - 1)
    held = [await announce(served, MAX_BODY, part, 30_000) for _ in range(MAX_READING // MAX_BODY + 1)]
    reads = [asyncio.create_task(reader.readline()) for reader, _ in held]
    done, waiting = await asyncio.wait(reads, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert [b" 429 " in task.result() for task in done] == [True]
    for task in waiting:
        task.cancel()
    for _, writer in held:
        writer.close()
    assert (await served.infer(b" " * 1024**2 + as_json(request()))).status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "x", "99999999999"])
async def test_a_deadline_must_be_a_number(served: Served, value: str) -> None:
    reply = await served.infer(request(), Muster_Deadline_Ms=value)
    assert reply.status_code == 400
    assert "Muster-Deadline-Ms" in reply.json()["error"]


async def test_binary_and_compressed_bodies_are_refused(served: Served) -> None:
    assert (await served.infer(request(), Inference_Header_Content_Length="5")).status_code == 400
    assert (await served.infer(request(), Content_Encoding="gzip")).status_code == 415


async def flood(served: Served, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Keep the slow model busy; returns when requests wait."""
    tasks = [asyncio.create_task(served.infer(request(), "/v2/models/slow/infer")) for _ in range(count)]
    loaded = served.models.active("slow")
    assert loaded is not None
    async with asyncio.timeout(10):
        while loaded.dispatcher.queued == 0:
            await asyncio.sleep(0.001)
    return tasks


async def test_a_deadline_that_cannot_be_met_is_429_or_504(served: Served) -> None:
    tasks = await flood(served, 30)
    header = await served.infer(request(), "/v2/models/slow/infer", Muster_Deadline_Ms="1")
    parameter = await served.infer(request(parameters={"timeout": 1000}), "/v2/models/slow/infer")
    for reply in (header, parameter):
        assert reply.status_code in (429, 504)
        assert reply.status_code == 504 or int(reply.headers["retry-after"]) >= 1
    assert {reply.status_code for reply in await asyncio.gather(*tasks)} == {200}


async def test_a_client_that_goes_away_leaves_the_queue(served: Served) -> None:
    tasks = await flood(served, 60)
    loaded = served.models.active("slow")
    assert loaded is not None
    body = as_json(request())
    gone = socket.create_connection(("127.0.0.1", served.port))
    gone.sendall(b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await asyncio.sleep(0.02)
    gone.close()
    await asyncio.gather(*tasks)
    async with asyncio.timeout(10):
        while loaded.tally.outcomes["cancelled"] == 0:
            await asyncio.sleep(0.001)
    assert loaded.tally.outcomes == {"ok": 60, "cancelled": 1}


async def test_draining_is_503_and_not_ready(served: Served) -> None:
    await served.models.drain()
    assert (await served.infer(request())).status_code == 503
    assert (await served.http.get("/v2/health/ready")).status_code == 503
    assert (await served.http.get("/health")).json()["status"] == "draining"


async def test_no_model_is_not_ready(served: Served) -> None:
    for name in served.models.names():
        await served.models.remove(name)
    assert (await served.http.get("/v2/health/ready")).json() == {"ready": False}
    assert "none yet" in (await served.infer(request())).json()["error"]


async def test_metrics_count_by_model_and_outcome(served: Served) -> None:
    for body in (request(), request(), {}):
        await served.infer(body)
    await served.infer(request(), "/v2/models/<script>/infer")
    text = (await served.http.get("/metrics")).text
    assert 'muster_serving_requests_total{model="tiny",outcome="ok"} 2.0' in text
    assert 'muster_serving_requests_total{model="tiny",outcome="bad_request"} 1.0' in text
    assert 'muster_serving_requests_total{model="",outcome="unknown_model"} 1.0' in text
    assert 'muster_serving_latency_seconds_count{model="tiny"} 2.0' in text
    assert 'muster_serving_batch_rows_bucket{le="1.0",model="tiny"} 2.0' in text
    assert 'muster_serving_queue_requests{model="tiny"} 0.0' in text
    assert "<script>" not in text


async def test_the_page_is_small_and_escaped(served: Served, tmp_path: Path) -> None:
    file = make_model(tmp_path / "model.onnx")
    await served.models.serve(Build(model="<b>x", version="1", build="x", file=file))
    reply = await served.http.get("/")
    assert "&lt;b&gt;x" in reply.text
    assert "<b>x" not in reply.text
    assert "script" not in reply.text
    assert len(reply.content) < 6000
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_says_how_the_agent_stands_as_far_as_it_told(tmp_path: Path) -> None:
    item = {"component": "model:<b>", "build": "b-1", "state": "SUCCEEDED"}
    told = {"device": "d-x", "controller": "https://c:7070", "link": "no route <i>", "reported": {"items": [item]}}
    file = tmp_path / "status.json"
    assert read_status(file) == read_status(None) == {}
    file.write_bytes(orjson.dumps(told))
    shown = page([], False, read_status(file))
    assert "not connected</b>: no route &lt;i&gt;" in shown
    assert "model:&lt;b&gt;" in shown
    assert "d-x" in shown
    file.write_bytes(orjson.dumps(told | {"link": "up"}))
    assert "connected</b>" in page([], False, read_status(file))
    for broken in (b"", b"[1]", b'{"a": ', b"\xff", orjson.dumps({"reported": {"items": "x"}}), b"x" * 300_000):
        file.write_bytes(broken)
        assert page([], False, read_status(file)).endswith("</html>")
