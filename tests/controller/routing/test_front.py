"""What clients see: statuses, limits, headers."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from sqlalchemy import update

from controller.database import tables
from controller.routing import gateway

MODEL = "digits"
INFER = f"/v2/models/{MODEL}/infer"


@pytest.mark.parametrize(
    "text", ["", "Basic abc", "Bearer", "Bearer mut.x", "Bearer mut.aaaaaaaaaaaaaaaa.b", "Bearer x.y.z"]
)
async def test_without_a_token_that_holds_nothing_is_done(house, text):
    device = await house.join()
    answer = await house.infer(Authorization=text)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]
    assert device.asked == []


async def test_expired_and_revoked_tokens_are_refused(house):
    expired = house.make_token("admin", expires=time.time() - 5)
    answer = await house.infer(Authorization=f"Bearer {expired}")
    assert (answer.status_code, answer.json()["code"]) == (401, "expired_token")
    revoked = house.make_token("admin")
    with house.database.begin() as c:
        id_ = revoked.split(".")[1]
        c.execute(update(tables.api_tokens).where(tables.api_tokens.c.id == id_).values(revoked=time.time()))
    answer = await house.infer(Authorization=f"Bearer {revoked}")
    assert (answer.status_code, answer.json()["code"]) == (401, "revoked_token")


async def test_a_revocation_ends_a_token_that_was_used(house, eventually):
    await house.join()
    token = house.make_token("operator")
    assert (await house.infer(Authorization=f"Bearer {token}")).status_code == 200
    with house.database.begin() as c:
        id_ = token.split(".")[1]
        c.execute(update(tables.api_tokens).where(tables.api_tokens.c.id == id_).values(revoked=time.time()))

    async def over() -> bool:
        return (await house.infer(Authorization=f"Bearer {token}")).status_code == 401

    await eventually(over)


async def test_a_token_can_be_used_at_once(house):
    await house.join()
    for _ in range(5):
        assert (await house.infer(Authorization=f"Bearer {house.make_token('operator')}")).status_code == 200


@pytest.mark.parametrize("role", ["viewer", "builder", "gateway"])
async def test_a_role_that_may_not_infer_is_refused(house, role):
    answer = await house.infer(Authorization=f"Bearer {house.make_token(role)}")
    assert (answer.status_code, answer.json()["code"]) == (403, "denied")


async def test_paths_and_methods(house):
    await house.join()
    for method, path, status in [
        ("GET", "/", 404),
        ("GET", "/v2", 200),
        ("POST", "/v2", 405),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/healthz", 200),
        ("GET", "/tunnel", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("POST", f"/v2/models/{MODEL}/versions/9/infer", 404),
        ("GET", INFER, 405),
        ("POST", f"/v2/models/{MODEL}", 405),
        ("POST", "/v2/models/../infer", 404),
        ("POST", "/v2/models/Digits/infer", 404),
        ("POST", INFER + "/", 404),
        ("POST", INFER + "%0a", 404),
        ("GET", f"/v2/models/{MODEL}/ready", 200),
        ("GET", f"/v2/models/{MODEL}/versions/1/ready", 200),
        ("GET", f"/v2/models/{MODEL}", 200),
    ]:
        request = house.client.build_request(method, "/")
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = await house.client.send(request)
        assert answer.status_code == status, (method, path, answer.text)
        if status >= 400:
            assert answer.json()["error"]


async def test_the_models_description_comes_from_a_device(house):
    async def describe(device, asked):
        await device.answer(asked.stream, 200, asked.head.method.encode() + b" " + asked.head.path.encode())

    await house.join(respond=describe)
    assert (await house.client.get(f"/v2/models/{MODEL}")).text == f"GET /v2/models/{MODEL}"


async def test_a_known_model_without_a_device_is_not_ready(house):
    answer = await house.infer(x_request_id="r1")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-request-id"] == "r1"
    assert (await house.client.get(f"/v2/models/{MODEL}/ready")).json() == {"name": MODEL, "ready": False}


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(house):
    device = await house.join()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.token}\r\n"
        f"Content-Length: {100 * 1024**3}\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.readline()
    writer.close()
    assert device.asked == []


async def test_a_body_of_unknown_length_is_bounded(house):
    device = await house.join()

    async def endless():
        while True:
            yield b"x" * 65536

    try:
        answer = await house.client.post(INFER, content=endless())
        assert answer.status_code == 413
    except (httpx.WriteError, httpx.ReadError):
        pass  # the gateway closed while more was being sent

    async def short():
        yield b"ab"
        yield b"cd"

    assert (await house.client.post(INFER, content=short())).content == b"abcd"
    assert len(device.asked) == 1
    assert await house.metric("muster_gateway_body_bytes") == 0


async def test_a_client_that_does_not_send_its_body_is_not_waited_for(house):
    await house.join()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.token}\r\nMuster-Deadline-Ms: 100\r\n"
        "Content-Length: 10\r\n\r\nabc".encode()
    )
    async with asyncio.timeout(5):
        assert b" 408 " in await reader.readline()
    writer.close()
    assert await house.metric("muster_gateway_body_bytes") == 0


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "abc", "", "99999999999"])
async def test_a_deadline_must_be_whole_milliseconds(house, text):
    answer = await house.infer(muster_deadline_ms=text)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_deadline")


async def test_a_strange_header_is_refused_and_a_strange_request_id_replaced(house):
    device = await house.join()
    answer = await house.client.post(INFER, content=b"", headers={"content-type": "a" * 600})
    assert answer.status_code == 400
    answer = await house.client.post(INFER, content=b"", headers={"x-request-id": "a b"})
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == device.asked[0].head.headers["x-request-id"] != "a b"


async def test_a_device_cannot_forge_headers(house):
    async def forge(device, asked):
        await device.answer(
            asked.stream,
            200,
            b"x",
            {
                "Muster-Device": "d-other",
                "Set-Cookie": "a=b",
                "muster-note": "a\r\nset-cookie: c=d",
                "Muster-Build": "b-1",
                "Content-Type": "text/plain",
                "content-length": "7",
            },
        )

    device = await house.join(respond=forge)
    answer = await house.infer()
    assert answer.status_code == 200
    assert answer.headers.get_list("muster-device") == [device.id]
    assert "set-cookie" not in answer.headers
    assert "muster-note" not in answer.headers
    assert answer.headers["muster-build"] == "b-1"
    assert answer.headers.get_list("content-type") == ["text/plain"]  # said twice, as two names that are one
    assert answer.headers["content-length"] == "1"


async def test_metrics_need_a_token_and_show_the_own_tenant_only(house):
    await house.join()
    await house.infer()
    assert (await house.client.get("/metrics", headers={"Authorization": ""})).status_code == 401
    own = (await house.client.get("/metrics", headers={"Authorization": f"Bearer {house.make_token('viewer')}"})).text
    assert f'muster_gateway_requests_total{{model="{MODEL}",status="200",tenant="default"}} 1.0' in own
    assert "muster_gateway_tunnels 1.0" in own
    other = await house.client.get(
        "/metrics", headers={"Authorization": f"Bearer {house.make_token('viewer', 'other')}"}
    )
    assert other.status_code == 200
    assert 'tenant="default"' not in other.text


async def test_what_is_refused_is_counted_where_it_belongs(house):
    await house.join()
    await house.client.post(INFER, headers={"Authorization": "Bearer nonsense"})
    await house.client.post(INFER, headers={"Authorization": f"Bearer {house.make_token('viewer')}"})
    await house.client.post("/v2/models/none/infer")
    await house.infer(b"x" * (13 * 1024 * 1024))
    await house.client.post(INFER, headers={"Authorization": f"Bearer {house.make_token('admin', 'other')}"})
    page = (await house.client.get("/metrics")).text
    for model, status, tenant in [
        ("", 401, ""),
        ("", 403, "default"),
        ("", 404, "default"),
        (MODEL, 413, "default"),
    ]:
        assert f'requests_total{{model="{model}",status="{status}",tenant="{tenant}"}} 1.0' in page
    assert 'tenant="other"' not in page


class TestBounded:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        # the gateway may hold no more than this, whatever the size of one body
        monkeypatch.setattr(gateway, "MAX_HELD", 20 * 1024 * 1024)
        monkeypatch.setattr(gateway, "BODIES_HELD", 1)

    async def test_the_bytes_held_are_bounded(self, house):
        async def silent(device, asked):
            await asyncio.Event().wait()

        device = await house.join(respond=silent)
        large = b"x" * (11 * 1024 * 1024)
        first = asyncio.create_task(house.infer(large, muster_deadline_ms="1500"))
        async with asyncio.timeout(5):
            while not device.asked:
                await asyncio.sleep(0.005)
        answer = await house.infer(large)
        assert (answer.status_code, answer.json()["code"]) == (429, "gateway_full")
        assert answer.headers["retry-after"] == "1"
        assert (await first).status_code == 504
        assert await house.metric("muster_gateway_body_bytes") == 0

    async def test_one_tenant_does_not_take_all_of_it(self, house):
        async def silent(device, asked):
            await asyncio.Event().wait()

        device = await house.join(respond=silent)
        await house.join(tenant="other")
        large = b"x" * (11 * 1024 * 1024)
        first = asyncio.create_task(house.infer(large, muster_deadline_ms="1500"))
        async with asyncio.timeout(5):
            while not device.asked:
                await asyncio.sleep(0.005)
        assert (await house.infer(b"x" * (5 * 1024 * 1024))).json()["code"] == "gateway_full"
        others = f"Bearer {house.make_token('operator', 'other')}"
        assert (await house.infer(b"x" * (2 * 1024 * 1024), Authorization=others)).status_code == 200
        await first

    async def test_a_client_that_does_not_take_its_answer_holds_its_request_no_longer(self, house, eventually):
        async def large(device, asked):
            await device.answer(asked.stream, 200, b"y" * (6 * 1024 * 1024))

        await house.join(respond=large)
        await house.until_ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port, limit=1024)
        body = b"x" * (4 * 1024 * 1024)
        writer.write(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert b" 200 " in await reader.readline()

        async def only_the_answer() -> bool:
            return await house.metric("muster_gateway_body_bytes") == 6 * 1024 * 1024

        await eventually(only_the_answer)
        writer.close()
