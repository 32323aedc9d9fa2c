"""The real gateway against devices that behave, and devices that do not."""

from __future__ import annotations

import asyncio

from wire.tunnel import SUBPROTOCOL

MODEL = "digits"


async def test_a_request_reaches_a_device_and_its_answer_comes_back(house):
    device = await house.join()
    await house.until_ready()
    answer = await house.infer(b'{"inputs": []}', x_request_id="abc-1", content_type="application/json")
    assert answer.status_code == 200
    assert answer.content == b'{"inputs": []}'
    assert answer.headers["muster-device"] == device.id
    assert answer.headers["muster-attempts"] == "1"
    assert float(answer.headers["muster-route-ms"]) >= 0
    assert answer.headers["x-request-id"] == "abc-1"
    asked = device.asked[0].head
    assert (asked.method, asked.path) == ("POST", f"/v2/models/{MODEL}/infer")
    assert asked.headers["x-request-id"] == "abc-1"
    assert asked.headers["content-type"] == "application/json"
    assert "authorization" not in asked.headers
    assert SUBPROTOCOL == device.socket.subprotocol
