"""A revoked device's line is cut and stays cut, on a real mosquitto: list, reload, cut."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from controller.broker.configuration import configuration, read_version
from controller.broker.operate import Operator
from controller.devices.revocation import BACKDATED
from controller.errors import UnavailableError
from wire.codec import encode
from wire.messages import Heartbeat
from wire.topics import DESIRED, HEARTBEAT, topic_for

PROMISED = 5.0  # seconds from the click until the device is out
RELOADS = 500
ACCEPTED = b"\x20\x02\x00\x00"


@contextlib.asynccontextmanager
async def coming_back(house: Any, identity: Any) -> Any:
    """A device that connects again whenever it can, as agents do; yields when it was last let in."""
    seen = {"in": 0, "up": False}

    async def run() -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                async with house.client(identity) as client:
                    seen["in"] += 1
                    seen["up"] = True
                    async for _ in client.messages:
                        pass
            seen["up"] = False
            await asyncio.sleep(0.005)

    task = asyncio.create_task(run())
    try:
        await house.until(lambda: seen["up"])
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_revoked_device_is_cut_and_not_let_in_again(house: Any) -> None:
    victim, other = house.identity(), house.identity()
    async with coming_back(house, victim) as seen, house.client(other) as stays:
        house.revoke(victim.name)
        began = time.monotonic()
        house.operator.reload()
        await house.operator.cut(victim.name)
        await house.until(lambda: not seen["up"])
        assert time.monotonic() - began < PROMISED
        tries = seen["in"]
        assert await asyncio.to_thread(house.answer, victim) == b""
        await asyncio.sleep(0.2)
        assert (seen["in"], seen["up"]) == (tries, False)
        # the others are not touched, and new ones get in
        await stays.publish(topic_for(HEARTBEAT, other.name), encode(Heartbeat(at=1.0, session=1)), qos=1)
        await house.until(lambda: bool(house.heard))
        assert await asyncio.to_thread(house.answer, house.identity()) == ACCEPTED
        assert house.connects == 1


async def test_two_revocations_within_one_second_both_hold(house: Any) -> None:
    # each list is in force when the cut after its reload is done, however quickly they follow each other
    victims = [house.identity() for _ in range(3)]
    for victim in victims:
        house.revoke(victim.name)
        house.operator.reload()
        await house.operator.cut(victim.name)
    assert [await asyncio.to_thread(house.answer, victim) for victim in victims] == [b"", b"", b""]
    assert await asyncio.to_thread(house.answer, house.identity()) == ACCEPTED


async def test_a_cut_leaves_nothing_of_the_session(house: Any) -> None:
    device = house.identity()
    async with house.client(device) as client:
        await client.subscribe(topic_for(DESIRED, device.name), qos=1)
    await house.operator.cut(device.name)
    await house.broker.publish(DESIRED, device.name, b"retained only")
    async with house.client(device) as client:  # no subscription is left: nothing comes
        await client.publish(topic_for(HEARTBEAT, device.name), encode(Heartbeat(at=1.0, session=1)), qos=1)
        await house.until(lambda: bool(house.heard))
        assert len(client.messages) == 0


async def test_an_expired_list_locks_everybody_out_and_a_new_one_lets_them_in(house: Any) -> None:
    device, now = house.identity(), time.time()
    held = house.authority.held_list()
    house.authority.write_list((), held.begins + 1, now - 60)
    house.operator.reload()
    await house.operator.cut("d-nobody")
    assert await asyncio.to_thread(house.answer, device) == b""
    house.authority.write_list((), held.begins + 2, now + 86_400)
    house.operator.reload()
    await house.operator.cut("d-nobody")
    assert await asyncio.to_thread(house.answer, device) == ACCEPTED


@pytest.mark.slow
async def test_many_reloads_do_no_harm(house: Any) -> None:
    victim, other = house.identity(), house.identity()
    pid = house.mosquitto.pid
    house.revoke(victim.name)
    async with house.client(other) as stays:
        for number in range(RELOADS):
            held = house.authority.held_list()
            house.authority.write_list(held.serials | {f"{number + 1:x}"}, held.begins + 1, held.ends)
            house.operator.reload()
            await house.operator.cut(victim.name)  # each list is loaded before the next is written
        assert (house.mosquitto.pid, house.mosquitto.restarts, house.connects) == (pid, 0, 1)
        assert await asyncio.to_thread(house.answer, victim) == b""
        assert await asyncio.to_thread(house.answer, house.identity()) == ACCEPTED
        await stays.publish(topic_for(HEARTBEAT, other.name), encode(Heartbeat(at=1.0, session=1)), qos=1)
        await house.until(lambda: bool(house.heard))
    assert held.begins < time.time() - BACKDATED + 2 * RELOADS  # still far from the future


async def test_who_is_away_is_told(house: Any, tmp_path: Path) -> None:
    operator = house.operator
    elsewhere = Operator(tmp_path / "nothing", operator.root, operator.certificate, operator.key)
    with pytest.raises(UnavailableError, match="no broker runs"):
        elsewhere.reload()
    with pytest.raises(UnavailableError, match="did not cut"):
        await elsewhere.cut("d-x")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "mosquitto.pid").write_text("1\n")  # another process: it is not signalled
    with pytest.raises(UnavailableError, match="not the broker"):
        elsewhere.reload()
    with pytest.raises(UnavailableError, match="did not cut"):
        await operator.cut("x" * 200)
    await house.mosquitto.stop()
    with pytest.raises(UnavailableError):
        operator.reload()
    with pytest.raises(UnavailableError):
        await operator.cut("d-x")


def test_what_is_written_depends_on_the_version(house: Any) -> None:
    listener = house.listener(8883)
    texts = {
        version: configuration(listener, Path("/r"), Path("/s"), as_root=False, version=version)
        for version in ((2, 0), (2, 1))
    }
    assert set(texts[2, 0].splitlines()) - set(texts[2, 1].splitlines()) == {"message_size_limit 266240"}
    assert set(texts[2, 1].splitlines()) < set(texts[2, 0].splitlines())
    assert "per_listener_settings" not in texts[2, 0]
    assert read_version("mosquitto version 2.0.11\n\nmosquitto is") == (2, 0)
    assert read_version("mosquitto version 2.1.2") == (2, 1)
    for text in ("mosquitto version 1.6.9", "", "something else"):
        with pytest.raises(UnavailableError, match=r"2\.0 or newer"):
            read_version(text)
