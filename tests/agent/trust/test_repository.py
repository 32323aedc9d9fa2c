"""The agent's questions, answered by a real child process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.errors import TrustError, UnreachableError
from agent.trust import child, repository
from agent.trust.clock import FAR_AHEAD, RELEASED
from agent.trust.repository import Repository
from tests.agent.trust.signed_repository import SignedRepository

PATH = "builds/rpi5/digits/b-1.json"


@pytest.fixture
def signed() -> Iterator[SignedRepository]:
    made = SignedRepository(float(int(time.time())))
    yield made
    made.close()


@pytest.fixture
def ours(tmp_path: Path, signed: SignedRepository) -> Repository:
    return Repository(tmp_path / "trust", signed.url, signed.first_root)


def children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "agent.trust.child" in process.cmdline():
                found.append(process)
    return found


async def test_a_refresh_and_several_targets_in_one_question(ours: Repository, signed: SignedRepository) -> None:
    signed.delegate("targets", "rpi5", ["builds/rpi5/*/*"], terminating=True)
    signed.add("rpi5", PATH, b"envelope", {"precision": "int8"})
    signed.release("rpi5", "targets")
    told = await ours.refresh([PATH, "builds/rpi5/digits/b-2.json"])
    target = told.found[PATH]
    assert target is not None
    assert (target.length, target.custom) == (8, {"precision": "int8"})
    assert told.found["builds/rpi5/digits/b-2.json"] is None
    assert told.targets == 2
    assert not told.clock.suspect
    assert await ours.target(PATH) == target
    assert await ours.targets([PATH]) == {PATH: target}
    assert children() == []


async def test_a_refusal_is_a_trust_error_with_its_code(ours: Repository, signed: SignedRepository) -> None:
    signed.expire("snapshot")
    signed.release()
    with pytest.raises(TrustError) as caught:
        await ours.refresh()
    assert caught.value.code == "expired"
    signed.close()
    with pytest.raises(TrustError) as caught:
        await ours.refresh()
    assert caught.value.code == "unreachable"


async def test_numbers_that_no_register_holds_are_carried_over(ours: Repository, signed: SignedRepository) -> None:
    signed.add("targets", "x", b"1", {"size": 10**400})
    signed.targets("targets").targets["x"].length = 10**30
    signed.mds["targets"].signed.version = 10**30
    signed.publish("targets", bump=False)
    signed.release()
    told = await ours.refresh(["x"])
    target = told.found["x"]
    assert target is not None
    assert (told.targets, target.length) == (10**30, 10**30)


async def test_a_server_that_asks_for_a_token_gets_one_and_once_a_fresh_one(
    tmp_path: Path, signed: SignedRepository
) -> None:
    tokens = ["old", "new", "newer"]

    def guarded(handler: Any) -> None:
        status = 401 if handler.headers["Authorization"] == "Bearer old" else 404
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    async def authorise() -> str:
        return tokens[0]

    signed.answers["2.root.json"] = guarded
    made = Repository(
        tmp_path / "trust", signed.url, signed.first_root, authorise=authorise, forget=lambda: tokens.pop(0)
    )
    await made.refresh()
    assert signed.tokens == ["Bearer old", *["Bearer new"] * 4]
    tokens[:] = ["old", "old"]
    with pytest.raises(TrustError) as caught:
        await made.refresh()
    assert caught.value.code == "unauthorised"


async def test_without_a_token_to_be_had_nobody_is_asked(tmp_path: Path, signed: SignedRepository) -> None:
    async def away() -> str:
        raise UnreachableError("the controller is away", "unreachable")

    made = Repository(tmp_path / "trust", signed.url, signed.first_root, authorise=away)
    with pytest.raises(TrustError) as caught:
        await made.refresh()
    assert caught.value.code == "unreachable"
    assert signed.asked == []


async def test_questions_at_once_wait_for_each_other(ours: Repository) -> None:
    asked = asyncio.gather(*(ours.refresh() for _ in range(3)))
    most = 0
    while not asked.done():
        most = max(most, len(children()))
        await asyncio.sleep(0.01)
    assert {answer.timestamp for answer in await asked} == {1}
    assert most == 1


async def test_a_child_that_gives_no_verdict_is_ended(
    tmp_path: Path, signed: SignedRepository, monkeypatch: Any
) -> None:
    monkeypatch.setattr(repository, "_GRACE", 0.0)
    signed.answers["timestamp.json"] = lambda _handler: time.sleep(5)
    slow = Repository(tmp_path / "trust", signed.url, signed.first_root, deadline=0.05)
    with pytest.raises(TrustError) as caught:
        await slow.refresh()
    assert caught.value.code in ("no_verdict", "too_slow")
    assert children() == []


async def test_cancelling_ends_the_child(ours: Repository, signed: SignedRepository) -> None:
    signed.answers["timestamp.json"] = lambda _handler: time.sleep(60)
    task = asyncio.create_task(ours.refresh())
    async with asyncio.timeout(10):
        while "timestamp.json" not in signed.asked:
            await asyncio.sleep(0.01)
    assert len(children()) == 1
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 5.0
    assert children() == []


async def test_a_child_takes_no_more_memory_than_it_may(tmp_path: Path, signed: SignedRepository) -> None:
    for number in range(8000):
        target = signed.targets("targets").targets
        path = f"builds/rpi5/digits/{number}"
        target[path] = type(signed.add("targets", "one", b"1"))(1, {"sha256": "0" * 64}, path)
    signed.release("targets")
    tight = Repository(tmp_path / "trust", signed.url, signed.first_root, memory_bytes=4 * 1024**2)
    with pytest.raises(TrustError) as caught:
        await tight.refresh()
    assert caught.value.code in ("no_memory", "malformed", "no_verdict")
    assert (await Repository(tmp_path / "trust", signed.url, signed.first_root).refresh()).targets == 2


async def test_no_more_paths_than_are_allowed(ours: Repository, signed: SignedRepository) -> None:
    for paths in (["x"] * 65, [""], ["x" * 1025]):
        with pytest.raises(TrustError):
            await ours.refresh(paths)
    assert signed.asked == []


def test_the_clock_is_judged_without_asking_anybody(ours: Repository, signed: SignedRepository) -> None:
    assert ours.clock(0.0).suspect
    assert not ours.clock(RELEASED + 5).suspect
    assert ours.clock(RELEASED + FAR_AHEAD * 2).suspect
    assert signed.asked == []


def test_a_request_that_is_none_ends_the_child_with_an_error(monkeypatch: Any) -> None:
    import io
    import sys
    from types import SimpleNamespace

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"{}")))
    with pytest.raises(ValueError, match="directory"):
        child.main()
