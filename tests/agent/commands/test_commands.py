"""Commands: done at most once, answered exactly once, whatever is cut off or sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from agent import durable
from agent.commands.handling import CUT_OFF, Commands
from agent.commands.log_ends import EACH_BYTES, log_ends
from agent.commands.taken import MAX_KEPT, Taken
from agent.errors import DeviceError, ServingError, TrustError
from agent.link.outbox import Outbox
from agent.trust.pinned import Pinned
from wire import codec, envelope
from wire.enrolment import TrustBundle
from wire.messages import Command, Reply

NOW = 1_700_000_000.0
DEVICE = "d-" + "a" * 26
KEY = ed25519.Ed25519PrivateKey.generate()
OTHER = ed25519.Ed25519PrivateKey.generate()
TRUST = Pinned(
    TrustBundle(
        ca_pem="",
        assignment_keys=[envelope.encode_public_key(KEY.public_key())],
        tuf_root=b"{}",
    )
)


def command(number: int = 1, kind: str = "restart", device: str = DEVICE, expires: float = NOW + 60) -> Command:
    return Command(id=f"c-{number:024x}", device=device, kind=kind, issued=NOW, expires=expires)


def sealed(wanted: Command, key: ed25519.Ed25519PrivateKey = KEY, purpose: str = envelope.COMMAND) -> bytes:
    return envelope.seal(codec.encode(wanted), purpose, key)


class Device:
    """One device's commands over its real disk; ``again`` is a restart."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.done: list[str] = []
        self.deed: Callable[[], Any] = self._restart
        self.outbox = Outbox(data / "outbox.db")
        self.commands = self._commands()

    async def _restart(self) -> tuple[str, str]:
        self.done.append("restart")
        return "it runs again", ""

    def _commands(self) -> Commands:
        return Commands(
            DEVICE,
            open_command=TRUST.open_command,
            taken=Taken(self.data / "commands", clock=lambda: NOW),
            put=self.outbox.put,
            deeds={"restart": lambda: self.deed()},
            clock=lambda: NOW,
        )

    def again(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.data / "outbox.db")
        self.commands = self._commands()

    async def hear(self, *payloads: bytes, replies: int) -> list[Reply]:
        """Let it hear ``payloads``, and return what it has answered in all, once there are ``replies``."""
        for payload in payloads:
            self.commands.hear(payload)
        running = asyncio.create_task(self.commands.run())
        try:
            async with asyncio.timeout(5):
                while self.outbox.pending() < replies or self.commands._waiting.qsize():
                    if running.done():
                        running.result()
                    await asyncio.sleep(0.005)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return [codec.decode(Reply, row.payload) for row in self.outbox.waiting(0, 100)]


@pytest.fixture
def device(tmp_path: Path) -> Any:
    made = Device(tmp_path)
    yield made
    made.outbox.close()


async def test_a_command_is_done_and_answered(device: Device) -> None:
    (reply,) = await device.hear(sealed(command()), replies=1)
    assert device.done == ["restart"]
    assert (reply.command, reply.outcome, reply.detail) == (command().id, "done", "it runs again")


async def test_sent_again_it_is_neither_done_nor_answered_again_also_after_a_restart(device: Device) -> None:
    await device.hear(sealed(command()), sealed(command()), replies=1)
    device.again()
    await device.hear(sealed(command()), sealed(command(2)), replies=2)
    assert device.done == ["restart", "restart"]
    assert device.outbox.pending() == 2


async def test_cut_off_in_the_middle_it_is_answered_with_interrupted_and_not_repeated(device: Device) -> None:
    begun = asyncio.Event()

    async def long() -> tuple[str, str]:
        device.done.append("begun")
        begun.set()
        await asyncio.Event().wait()
        return "", ""

    device.deed = long
    device.commands.hear(sealed(command()))
    running = asyncio.create_task(device.commands.run())
    await begun.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    device.again()
    (reply,) = await device.hear(replies=1)  # by itself: the controller may think that it was heard
    assert (reply.outcome, reply.detail) == ("interrupted", CUT_OFF)
    await device.hear(sealed(command()), replies=1)
    assert device.done == ["begun"]


@pytest.mark.parametrize("point", ["commands.taken:before", "commands.taken:renamed", "outbox.put:before"])
async def test_power_cuts_never_make_two_of_one(device: Device, point: str) -> None:
    class Cut(BaseException):
        pass

    def cut(name: str) -> None:
        if name == point:
            raise Cut

    before = durable.set_hook(cut)
    try:
        with pytest.raises(BaseException):  # noqa: B017 - the cut comes through a task
            await device.hear(sealed(command()), replies=1)
    finally:
        durable.set_hook(before)
    device.again()
    replies = await device.hear(sealed(command()), replies=1)
    assert len(device.done) <= 1
    assert len(replies) == 1
    assert replies[0].outcome == ("done" if point == "commands.taken:before" else "interrupted")


async def test_what_may_not_be_done_says_why(device: Device) -> None:
    late, odd = command(1, expires=NOW - 1), command(2, kind="self-destruct")
    replies = await device.hear(sealed(late), sealed(odd), replies=2)
    assert device.done == []
    assert [reply.outcome for reply in replies] == ["expired", "refused"]
    assert "self-destruct" in replies[1].detail
    assert "restart" in replies[1].detail


async def test_a_deed_that_fails_is_answered_with_its_reason(device: Device) -> None:
    async def fail() -> tuple[str, str]:
        raise ServingError("serving did not come back", "start")

    device.deed = fail
    (reply,) = await device.hear(sealed(command()), replies=1)
    assert (reply.outcome, reply.detail) == ("failed", "serving did not come back")


@pytest.mark.parametrize(
    "payload",
    [
        b"garbage",
        sealed(command(), OTHER),
        sealed(command(), purpose=envelope.ASSIGNMENT),
        sealed(command()).replace(b'"payload":"', b'"payload":"AA'),
    ],
    ids=["garbage", "the builder's key", "another purpose", "changed bytes"],
)
async def test_what_is_not_signed_for_this_is_refused(device: Device, payload: bytes) -> None:
    with pytest.raises(TrustError):
        device.commands.hear(payload)


async def test_another_devices_command_is_not_done(device: Device) -> None:
    await device.hear(sealed(command(1, device="d-" + "b" * 26)), sealed(command(2)), replies=1)
    assert device.done == ["restart"]
    assert device.outbox.pending() == 1


async def test_a_full_disk_leaves_the_command_for_later(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    tried = asyncio.Event()

    def full(*_: Any) -> None:
        loop.call_soon_threadsafe(tried.set)
        raise DeviceError("the disk is full", "disk_full")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_atomic", full)
        device.commands.hear(sealed(command()))
        running = asyncio.create_task(device.commands.run())
        await asyncio.wait_for(tried.wait(), 5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert device.done == []
    assert device.outbox.pending() == 0
    (reply,) = await device.hear(sealed(command()), replies=1)
    assert reply.outcome == "done"


async def test_a_flood_is_bounded(device: Device) -> None:
    for number in range(1, 100):
        device.commands.hear(sealed(command(number)))
    assert device.commands._waiting.qsize() == 16


def test_marks_are_bounded_and_survive(tmp_path: Path) -> None:
    taken = Taken(tmp_path / "c")
    names = [f"c-{number:024x}" for number in range(MAX_KEPT + 20)]
    assert all(taken.take(name) for name in names)
    assert not Taken(tmp_path / "c").take(names[-1])
    assert len(taken.all()) == MAX_KEPT
    with pytest.raises(ValueError, match="not the id"):
        taken.take("../../etc/passwd")


def test_the_ends_of_logs_are_bounded_and_nothing_else_is_read(tmp_path: Path) -> None:
    (tmp_path / "agent.log").write_bytes(b"first\n" + b"\xff" * 2 * EACH_BYTES + b"\nlast\n")
    (tmp_path / "serving.log").symlink_to("/etc/passwd")
    told = log_ends(tmp_path)
    assert "last" in told
    assert "first" not in told
    assert "root:" not in told
    assert len(told) < 2 * EACH_BYTES + 500
    (tmp_path / "serving.log").unlink()
    assert "journalctl" in log_ends(tmp_path)


async def test_control_characters_of_a_log_do_not_make_the_reply_too_large(device: Device) -> None:
    async def nasty() -> tuple[str, str]:
        return "logs", "\x1b[31m" + "\x00" * 70_000 + "end\n"

    device.deed = nasty
    (reply,) = await device.hear(sealed(command()), replies=1)
    assert reply.outcome == "done"
    assert reply.text.endswith("end\n")
    assert "\x00" not in reply.text
