"""Who may open a tunnel, and who may keep it."""

from __future__ import annotations

import asyncio
import time

import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ed25519

from controller.routing import gateway, hub
from controller.routing.budget import Budget
from controller.routing.fleet_view import FleetView
from controller.routing.hub import CONTESTED
from controller.routing.metrics import Metrics
from controller.routing.standings import LiveDevice
from controller.routing.tunnels import Tunnel
from wire.envelope import DEVICE_SESSION
from wire.tunnel import SUBPROTOCOL


async def refused(house, text: str | None, *, protocol: str = SUBPROTOCOL, path: str = "/tunnel") -> tuple[int, bytes]:
    """Try to open a tunnel and return the status and body with which it was refused."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        await websockets.connect(
            f"ws://127.0.0.1:{house.port}{path}",
            additional_headers={"Authorization": text} if text is not None else {},
            subprotocols=[websockets.Subprotocol(protocol)],
        )
    return caught.value.response.status_code, caught.value.response.body or b""


async def test_an_expired_credential_is_refused(house, make_credential):
    device = house.enrol()
    status, body = await refused(house, "Bearer " + make_credential(device.id, device.key, issued=-100, life=60))
    assert status == 401
    assert b"expired" in body


@pytest.mark.parametrize("times", [{"issued": 4000}, {"life": 30 * 86400}], ids=["future", "too_long"])
async def test_a_credential_with_impossible_times_is_refused(house, make_credential, times):
    device = house.enrol()
    status, body = await refused(house, "Bearer " + make_credential(device.id, device.key, **times))
    assert (status, b"bad_times" in body) == (401, True)


async def test_a_credential_of_another_key_is_refused(house, make_credential):
    device = house.enrol()
    status, body = await refused(house, "Bearer " + make_credential(device.id, ed25519.Ed25519PrivateKey.generate()))
    assert (status, b"bad_credential" in body) == (401, True)


async def test_a_device_cannot_speak_for_another_one(house, make_credential):
    device, victim = house.enrol(), house.enrol()
    assert (await refused(house, "Bearer " + make_credential(victim.id, device.key)))[0] == 401


async def test_a_signature_for_another_purpose_is_refused(house, make_credential):
    device = house.enrol()
    text = make_credential(device.id, device.key, purpose=DEVICE_SESSION)
    assert (await refused(house, "Bearer " + text))[0] == 401


async def test_an_unknown_device_is_refused(house, make_credential):
    text = make_credential("d-" + "z" * 26, ed25519.Ed25519PrivateKey.generate())
    status, body = await refused(house, "Bearer " + text)
    assert (status, b"no_device" in body) == (401, True)


async def test_a_revoked_device_is_refused(house, make_credential):
    device = house.enrol()
    house.revoke(device)
    status, body = await refused(house, "Bearer " + make_credential(device.id, device.key))
    assert (status, b"revoked" in body) == (403, True)


@pytest.mark.parametrize("text", [None, "", "Basic abc", "Bearer", "Bearer !!!", "Bearer e30", "Bearer " + "A" * 7000])
async def test_what_is_no_credential_is_refused(house, text):
    assert (await refused(house, text))[0] == 401


async def test_another_subprotocol_is_refused(house, make_credential):
    device = house.enrol()
    assert (await refused(house, "Bearer " + make_credential(device.id, device.key), protocol="other"))[0] == 400


async def test_there_is_no_tunnel_elsewhere(house, make_credential):
    device = house.enrol()
    assert (await refused(house, "Bearer " + make_credential(device.id, device.key), path="/v2"))[0] == 403


async def test_a_device_that_is_revoked_loses_its_tunnel(house):
    device = await house.join()
    await house.until_ready()
    house.revoke(device)
    await asyncio.wait_for(device.closed.wait(), 5)
    assert device.close_code == 4003
    assert (await house.infer()).status_code == 503


async def test_a_credential_that_expires_later_does_not_close_its_tunnel(house, make_credential):
    device = house.enrol()
    began = time.time()
    await device.connect(make_credential(device.id, device.key, life=0.3))
    await house.until_ready()
    while time.time() < began + 0.4:
        assert (await house.infer()).status_code == 200


async def test_a_device_that_comes_while_the_gateway_stops_is_told_so(house, make_credential):
    async def silent(device, asked):
        await asyncio.Event().wait()

    device = await house.join(respond=silent)
    await house.until_ready()
    request = asyncio.create_task(house.infer(muster_deadline_ms="3000"))
    async with asyncio.timeout(5):
        while not device.asked:
            await asyncio.sleep(0.005)
    house.stop.set()
    async with asyncio.timeout(5):
        while (await house.infer()).status_code != 503:
            await asyncio.sleep(0.005)
    other = house.enrol()
    status, body = await refused(house, "Bearer " + make_credential(other.id, other.key))
    assert (status, b"stopping" in body) == (503, True)
    await request


async def test_two_agents_with_one_identity_are_told(house, capsys):
    device = await house.join()
    for _ in range(CONTESTED):
        twin = type(device)(device.id, device.key, device.url)
        house.devices.append(twin)
        assert "was its disk copied" not in capsys.readouterr().out
        await twin.connect()
        await asyncio.wait_for(device.closed.wait(), 5)
        device = twin
    await house.until_tunnels(1)
    assert "was its disk copied" in capsys.readouterr().out


async def test_devices_of_another_tenant_are_not_asked(house):
    device = await house.join(tenant="other")
    assert (await house.infer()).status_code == 503
    token = house.make_token("operator", "other")
    answer = await house.infer(Authorization=f"Bearer {token}")
    assert answer.headers["muster-device"] == device.id


async def test_a_gateway_that_slept_does_not_close_the_tunnels_that_it_has_not_read_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "SUSPECT_AFTER", 0.5)
    monkeypatch.setattr(hub, "CLOSED_AFTER", 0.9)
    view = FleetView(tmp_path / "state.db")
    watching = hub.Hub(view, Budget(1), Metrics(lambda: 0.0), max_answer=1, max_tunnels=1)
    loop = asyncio.get_running_loop()
    closed: list[float] = []
    tunnel = Tunnel(
        LiveDevice("d-a", "t", 1, loop.time()), None, Budget(1), max_answer=1, on_status=lambda *_: None,
        on_close=lambda _: closed.append(loop.time()), on_late=lambda: None,
    )  # fmt: skip
    watching._tunnels["d-a"] = tunnel
    task = asyncio.create_task(watching.watch())
    await asyncio.sleep(0.1)
    time.sleep(1.5)  # the machine had no time for this process
    woke = loop.time()
    async with asyncio.timeout(10):
        while not closed:
            await asyncio.sleep(0.01)
    assert closed[0] - woke >= 0.8  # as long as ever, from then on
    task.cancel()
    view.close()


class TestFull:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(gateway, "MAX_TUNNELS", 1)

    async def test_a_full_gateway_says_so_and_takes_a_device_that_it_has_again(self, house, make_credential):
        device = await house.join()
        other = house.enrol()
        status, body = await refused(house, "Bearer " + make_credential(other.id, other.key))
        assert (status, b"ulimit" in body) == (503, True)
        twin = type(device)(device.id, device.key, device.url)
        house.devices.append(twin)
        await twin.connect()
        await asyncio.wait_for(device.closed.wait(), 5)
        assert device.close_code == 4009
