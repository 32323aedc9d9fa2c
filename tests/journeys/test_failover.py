"""One device dies, another freezes: nobody who asks the gateway notices."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

import httpx
import pytest

from tests.journeys.local_fleet import LocalFleet, tls

pytestmark = pytest.mark.journey
REQUESTS = 1000
AT_ONCE = 16


async def test_a_thousand_requests_while_one_serving_is_killed_and_one_is_frozen(fleet: LocalFleet) -> None:
    login, body = fleet.login, fleet.request_body()
    killed, frozen = fleet.serving("device-1"), fleet.serving("device-2")
    outcomes: Counter[int] = Counter()
    answered_by: Counter[str] = Counter()
    longest = 0.0
    numbers = iter(range(REQUESTS))

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal longest
        for number in numbers:
            if number == 200:
                killed.send_signal(signal.SIGKILL)
            if number == 400:
                frozen.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            answer = await client.post("/v2/models/digits/infer", content=body)
            longest = max(longest, time.monotonic() - began)
            outcomes[answer.status_code] += 1
            answered_by[answer.headers.get("Muster-Device", "none")] += 1

    try:
        async with httpx.AsyncClient(
            base_url=login.gateway_url,
            verify=tls(login.ca_file),
            headers={"Authorization": f"Bearer {login.token}"},
            timeout=30.0,
        ) as client:
            await asyncio.gather(*(ask(client) for _ in range(AT_ONCE)))
    finally:
        frozen.send_signal(signal.SIGCONT)
    assert outcomes == {200: REQUESTS}
    assert len(answered_by) >= 2
    assert longest < 5.0

    # And both come back by themselves. Asked many at once: one request at a time goes to whichever device was fastest.
    async with httpx.AsyncClient(
        base_url=login.gateway_url,
        verify=tls(login.ca_file),
        headers={"Authorization": f"Bearer {login.token}"},
        timeout=30.0,
    ) as client:
        until, seen = time.monotonic() + 60.0, set()
        while len(seen) < fleet.devices:
            assert time.monotonic() < until, f"not all three devices answer again: {seen}"
            answers = await asyncio.gather(
                *(client.post("/v2/models/digits/infer", content=body) for _ in range(2 * AT_ONCE))
            )
            seen = {answer.headers["Muster-Device"] for answer in answers if answer.status_code == 200}
