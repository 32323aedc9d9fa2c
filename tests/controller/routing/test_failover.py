"""Devices that do not behave: another one answers, and nothing is held for ever."""

from __future__ import annotations

import asyncio
import os
import time

import msgspec
import pytest

from wire.tunnel import CHUNK, Frame, Kind, ResponseHead, ServedModel, Status

MODEL = "digits"


async def silent(device, asked):
    await asyncio.Event().wait()


def says(status: int, body: bytes = b'{"error": "no"}'):
    async def respond(device, asked):
        await device.answer(asked.stream, status, body)

    return respond


async def dies_in_mid_answer(device, asked):
    head = msgspec.json.encode(ResponseHead(status=200, headers={}, body_bytes=100_000))
    await device.send(Frame(Kind.RESPONSE, asked.stream, head, b"x" * 1000, False))
    device.cut()


async def two_heads(device, asked):
    head = msgspec.json.encode(ResponseHead(status=200, headers={}, body_bytes=10))
    await device.send(Frame(Kind.RESPONSE, asked.stream, head, b"x", False))
    await device.send(Frame(Kind.RESPONSE, asked.stream, head, b"x", False))


async def too_long(device, asked):
    head = msgspec.json.encode(ResponseHead(status=200, headers={}, body_bytes=2))
    await device.send(Frame(Kind.RESPONSE, asked.stream, head, b"xxx", True))


async def too_short(device, asked):
    head = msgspec.json.encode(ResponseHead(status=200, headers={}, body_bytes=20))
    await device.send(Frame(Kind.RESPONSE, asked.stream, head, b"xxx", True))


async def too_large(device, asked):
    head = msgspec.json.encode(ResponseHead(status=200, headers={}, body_bytes=4 * 1024**3))
    await device.send(Frame(Kind.RESPONSE, asked.stream, head, b"x", False))


async def body_first(device, asked):
    await device.send(Frame(Kind.BODY, asked.stream, b"", b"x", False))


async def bad_head(device, asked):
    await device.send(Frame(Kind.RESPONSE, asked.stream, b"{", b"x", True))


async def informational(device, asked):
    await device.answer(asked.stream, 101)


async def elsewhere(device, asked):
    await device.answer(asked.stream, 302, b"{}", {"location": "https://example.org"})


async def garbage(device, asked):
    await device.socket.send(os.urandom(300))


async def text_message(device, asked):
    await device.socket.send("hello")


async def never_opened(device, asked):
    await device.answer(asked.stream + 1000, 200)


async def a_request(device, asked):
    await device.send(Frame(Kind.REQUEST, asked.stream))


async def bad_status(device, asked):
    await device.send(Frame(Kind.STATUS, 0, b"[]"))


async def huge_frame(device, asked):
    await device.socket.send(b"\x03\x00" + asked.stream.to_bytes(4, "big") + b"\0\0" + b"x" * (CHUNK * 4))


@pytest.mark.parametrize(
    "respond",
    [
        says(429),
        says(503),
        says(502),
        says(404),
        says(504),
        says(500),
        silent,
        dies_in_mid_answer,
        two_heads,
        too_long,
        too_short,
        too_large,
        body_first,
        bad_head,
        informational,
        elsewhere,
        garbage,
        text_message,
        never_opened,
        a_request,
        bad_status,
        huge_frame,
    ],
    ids=lambda one: one.__qualname__.split(".")[0],
)
async def test_another_device_answers(house, respond):
    bad, good = await house.join(respond=respond), await house.join()
    good.p50_ms, bad.p50_ms = 500.0, 1.0  # the bad one looks far better, so it is asked first
    await bad.say()
    await good.say()
    # `say` and the request go different ways into the gateway; the ranking must have seen both
    for _ in range(40):
        answer = await house.infer(b"abc", muster_deadline_ms="8000")
        assert (answer.status_code, answer.content) == (200, b"abc")
        assert answer.headers["muster-device"] == good.id
        if bad.asked:
            break
    assert bad.asked
    assert answer.headers["muster-attempts"] == "2"
    assert await house.metric("muster_gateway_body_bytes") == 0


@pytest.mark.parametrize(
    ("respond", "status", "code"),
    [
        (says(429), 429, "all_busy"),
        (says(503), 503, "not_served"),
        (says(504), 504, "no_answer"),
        (too_large, 502, "bad_answers"),
        (garbage, 503, "not_served"),
        (dies_in_mid_answer, 503, "not_served"),
    ],
    ids=["429", "503", "504", "too_large", "garbage", "dies"],
)
async def test_when_no_other_device_is_there(house, respond, status, code):
    await house.join(respond=respond)
    await house.until_ready()
    answer = await house.infer()
    assert answer.status_code == status
    assert answer.json()["code"] == code
    assert ": " in answer.json()["error"]  # what happened, and what may help
    assert ("retry-after" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize("status", [400, 413, 422, 501])
async def test_what_is_the_clients_own_fault_goes_straight_back(house, status):
    devices = [await house.join(respond=says(status)) for _ in range(2)]
    await house.until_ready()
    answer = await house.infer()
    assert answer.status_code == status
    assert answer.headers["muster-attempts"] == "1"
    assert sum(len(one.asked) for one in devices) == 1


async def test_a_request_on_which_two_devices_fail_is_not_given_to_a_third(house):
    devices = [await house.join(respond=says(500, b'{"error": "the model fails on this"}')) for _ in range(4)]
    await house.until_ready()
    answer = await house.infer()
    assert (answer.status_code, answer.json()) == (500, {"error": "the model fails on this"})
    assert answer.headers["muster-attempts"] == "2"
    assert sum(len(one.asked) for one in devices) == 2
    assert await house.metric("muster_gateway_suspects_total") == 0  # the request may be at fault
    assert await house.metric("muster_gateway_body_bytes") == 0


async def test_a_device_that_fails_where_another_does_not_is_asked_last(house):
    bad, good = await house.join(respond=says(500)), await house.join()
    bad.p50_ms, good.p50_ms = 1.0, 500.0
    await bad.say()
    await good.say()
    for _ in range(40):
        assert (await house.infer()).status_code == 200
        if bad.asked:
            break
    assert len(bad.asked) == 1
    assert await house.metric("muster_gateway_suspects_total") == 1
    for _ in range(5):
        assert (await house.infer()).headers["muster-attempts"] == "1"


async def test_a_request_that_brings_devices_down_stops_after_the_second(house):
    async def dies(device, asked):
        device.cut()

    devices = [await house.join(respond=dies) for _ in range(4)]
    await house.until_ready()
    answer = await house.infer()
    assert answer.status_code == 502
    assert answer.json()["code"] == "devices_vanished"
    assert "retry-after" not in answer.headers
    assert sum(len(one.asked) for one in devices) == 2


async def test_a_device_that_each_request_brings_down_is_asked_last_also_when_it_is_back(house, eventually):
    async def dies(device, asked):
        device.cut()

    bad, good = await house.join(respond=dies), await house.join()
    bad.p50_ms, good.p50_ms = 1.0, 500.0
    await bad.say()
    await good.say()
    for _ in range(40):
        assert (await house.infer()).status_code == 200
        if bad.asked:
            break
    await asyncio.wait_for(bad.closed.wait(), 5)
    await bad.connect()
    await house.until_tunnels(2)
    for _ in range(10):
        answer = await house.infer()
        assert (answer.headers["muster-device"], answer.headers["muster-attempts"]) == (good.id, "1")
    assert len(bad.asked) == 1
    bad.respond, good.respond = good.respond, dies  # asked last is not never: alone it answers, and is well again
    assert (await house.infer()).headers["muster-device"] == bad.id


async def test_a_silent_device_is_told_that_nobody_waits_and_its_late_answer_is_counted(house, eventually):
    slow, good = await house.join(respond=silent), await house.join()
    slow.p50_ms, good.p50_ms = 1.0, 900.0
    await slow.say()
    await good.say()
    for _ in range(40):
        began = time.perf_counter()
        assert (await house.infer()).status_code == 200
        if slow.asked:
            break
    assert time.perf_counter() - began < 2.0

    async def told() -> bool:
        return slow.cancelled == [slow.asked[0].stream]

    await eventually(told)
    await slow.answer(slow.asked[0].stream, 200, b"late")

    async def counted() -> bool:
        return await house.metric("muster_gateway_late_answers_total") == 1

    await eventually(counted)
    assert (await house.infer(b"next")).content == b"next"


async def test_the_deadline_of_the_client_holds(house):
    await house.join(respond=silent)
    await house.join(respond=silent)
    await house.until_ready()
    began = time.perf_counter()
    answer = await house.infer(muster_deadline_ms="400")
    assert answer.status_code == 504
    assert 0.35 < time.perf_counter() - began < 1.5


async def test_a_client_that_leaves_no_time_says_nothing_about_the_device(house):
    await house.join(respond=silent)
    await house.until_ready()
    assert (await house.infer(muster_deadline_ms="50")).status_code == 504
    assert await house.metric("muster_gateway_suspects_total") == 0
    assert (await house.infer(muster_deadline_ms="500")).status_code == 504
    assert await house.metric("muster_gateway_suspects_total") == 1


async def test_a_device_is_told_how_long_the_answer_is_of_use(house):
    device = await house.join()
    await house.until_ready()
    await house.infer(muster_deadline_ms="700")
    assert 500 < device.asked[0].head.deadline_ms <= 700


async def test_devices_are_not_blamed_when_the_gateway_itself_had_no_time(house):
    async def stops_the_world(device, asked):
        await device.answer(asked.stream, 200, b"in time")
        time.sleep(1.2)  # the gateway, in this same loop, can read it only when its patience is over

    for _ in range(2):
        await house.join(respond=stops_the_world)
    await house.until_ready()
    answer = await house.infer()
    assert (answer.content, answer.headers["muster-attempts"]) == (b"in time", "1")
    assert await house.metric("muster_gateway_suspects_total") == 0


async def test_a_large_request_is_not_hurried_by_the_time_it_takes_to_arrive(house):
    devices = [await house.join() for _ in range(2)]
    await house.until_ready()
    await house.infer(b"small", muster_deadline_ms="8000")
    await house.infer(b"x" * (2 * CHUNK), muster_deadline_ms="8000")
    told = {len(one.body): one.head.deadline_ms for device in devices for one in device.asked}
    assert told[5] == 1000  # then another device is asked
    assert 3000 < told[2 * CHUNK] <= 4000


async def test_only_what_the_model_did_tells_how_fast_it_is(house):
    status = 400

    async def respond(device, asked):
        await device.answer(asked.stream, status if asked.head.method == "POST" else 200, b"{}")

    devices = [await house.join(respond=respond) for _ in range(2)]
    await house.until_ready()

    async def patience() -> int:
        for _ in range(40):
            await house.client.get(f"/v2/models/{MODEL}")
            await house.infer()
        return min(device.asked[-1].head.deadline_ms for device in devices)

    assert await patience() == 1000  # as for a model of which nothing is known
    status = 200
    assert await patience() < 1000


async def test_a_device_that_is_gone_when_its_turn_comes_is_not_counted_as_asked(house):
    async def last_words(device, asked):
        second.cut()
        await house.until_tunnels(2)
        await device.answer(asked.stream, 503, b"{}")

    first, second, third = await house.join(respond=last_words), await house.join(), await house.join()
    first.p50_ms, second.p50_ms, third.p50_ms = 1.0, 100.0, 10_000.0
    for device in (first, second, third):
        await device.say()
    for _ in range(40):
        answer = await house.infer()
        assert answer.status_code == 200
        if first.asked:
            break
    assert answer.headers["muster-device"] == third.id
    assert answer.headers["muster-attempts"] == "2"
    assert not await house.metric('muster_gateway_attempts_total{outcome="lost"}')


async def test_a_newer_tunnel_replaces_the_older_and_what_was_asked_is_asked_again(house):
    device = await house.join(respond=silent)
    await house.until_ready()
    request = asyncio.create_task(house.infer(b"kept"))
    async with asyncio.timeout(5):
        while not device.asked:
            await asyncio.sleep(0.005)
    older = device.closed
    twin = type(device)(device.id, device.key, device.url)
    house.devices.append(twin)
    await twin.connect(announce=False)  # its models are known from the older tunnel
    answer = await asyncio.wait_for(request, 5)
    assert (answer.status_code, answer.content) == (200, b"kept")
    assert answer.headers["muster-device"] == device.id
    assert twin.asked[0].body == b"kept"
    await asyncio.wait_for(older.wait(), 5)
    assert device.close_code == 4009
    await house.until_tunnels(1)


async def test_a_frozen_device_is_asked_last_within_two_seconds_and_then_closed(house, eventually):
    frozen, good = await house.join(), await house.join()
    frozen.p50_ms, good.p50_ms = 1.0, 900.0
    await frozen.say()
    await good.say()
    await house.until_ready()
    frozen.freeze()
    began = time.perf_counter()

    async def suspected() -> bool:
        return await house.metric("muster_gateway_suspects_total") >= 1

    await eventually(suspected)
    assert time.perf_counter() - began < 2.0
    answer = await house.infer()
    assert answer.headers["muster-device"] == good.id
    assert answer.headers["muster-attempts"] == "1"
    await house.until_tunnels(1)
    assert time.perf_counter() - began < 4.0


async def test_a_device_that_answers_pings_but_says_nothing_loses_its_tunnel(house):
    device = await house.join()
    device.tasks[1].cancel()  # no more status; the WebSocket itself lives
    await asyncio.wait_for(device.closed.wait(), 6)
    assert device.close_code == 4008
    await house.until_ready(False)


async def test_a_client_that_goes_away_frees_the_device(house, eventually):
    device = await house.join(respond=silent)
    await house.until_ready()
    request = asyncio.create_task(house.infer())

    async def asked() -> bool:
        return bool(device.asked)

    await eventually(asked)
    request.cancel()

    async def told() -> bool:
        return bool(device.cancelled)

    await eventually(told)

    async def nothing_held() -> bool:
        return await house.metric("muster_gateway_requests_in_flight") == 0

    await eventually(nothing_held)
    page = (await house.client.get("/metrics")).text
    assert 'muster_gateway_attempts_total{outcome="abandoned"} 1.0' in page
    assert f'muster_gateway_requests_total{{model="{MODEL}",status="499",tenant="default"}} 1.0' in page


async def test_large_bodies_do_not_hold_up_small_requests(house):
    device = await house.join()
    await house.until_ready()
    large = os.urandom(8 * 1024 * 1024)
    bulk = [asyncio.create_task(house.infer(large)) for _ in range(3)]
    took = []
    while not all(one.done() for one in bulk):
        began = time.perf_counter()
        answer = await house.infer(b"small")
        took.append(time.perf_counter() - began)
        assert answer.content == b"small"
    for one in bulk:
        assert (await one).content == large
    order = [len(one.body) for one in device.asked]
    assert order[0] == 5, "a small request was asked after a large one that began before it"
    assert len(took) > 3
    assert await house.metric("muster_gateway_body_bytes") == 0


async def test_a_thousand_requests_while_one_device_dies_and_one_falls_silent(house):
    devices = [await house.join() for _ in range(3)]
    await house.until_ready()
    answers: list[int] = []
    left = iter(range(1000))

    async def client() -> None:
        for number in left:
            body = b"%d" % number
            answer = await house.infer(body)
            assert answer.content == body or answer.status_code != 200
            answers.append(answer.status_code)
            if number == 300:
                devices[0].cut()
            if number == 500:
                devices[1].freeze()

    await asyncio.gather(*(client() for _ in range(16)))
    assert answers == [200] * 1000
    assert all(one.asked for one in devices)
    assert await house.metric("muster_gateway_body_bytes") == 0
    assert await house.metric("muster_gateway_requests_in_flight") == 0


async def test_a_device_that_was_never_ready_is_not_asked(house):
    device = house.enrol()
    await device.connect(announce=False)
    await house.until_tunnels(1)
    assert (await house.infer()).status_code == 503
    model = ServedModel(name=MODEL, version="3", build="b", ready=True, queued=0)
    await device.send(Frame(Kind.STATUS, 0, msgspec.json.encode(Status(models=[model]))))
    await house.until_ready(version="3")
    assert (await house.infer(path=f"/v2/models/{MODEL}/versions/3/infer")).status_code == 200
    assert device.asked[0].head.path == f"/v2/models/{MODEL}/versions/3/infer"
