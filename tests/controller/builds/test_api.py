"""The HTTP API as a builder uses it, against a real server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from controller.builds.api import BuilderApi
from controller.errors import ControllerError, UnavailableError

if TYPE_CHECKING:
    from tests.controller.builds.conftest import Served


def api(served: Served, token: str | None = None) -> BuilderApi:
    return BuilderApi(served.url, served.ca_file, token or served.site.tokens["builder"])


async def test_files_go_there_and_back(served: Served, tmp_path: Path) -> None:
    content = b"some bytes" * 300_000
    sha256 = hashlib.sha256(content).hexdigest()
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    async with api(served) as client:
        await client.upload(sha256, source)
        await client.upload(sha256, content)
        await client.download(sha256, target)
    assert target.read_bytes() == content


async def test_bytes_that_changed_on_the_way_are_not_taken(served: Served, tmp_path: Path) -> None:
    sha256 = await served.site.upload(b"as it was")
    served.site.artifacts.path(sha256).write_bytes(b"as it is!")
    async with api(served) as client:
        with pytest.raises(UnavailableError, match="other bytes"):
            await client.download(sha256, tmp_path / "target")


async def test_a_refusal_keeps_the_controllers_words(served: Served, tmp_path: Path) -> None:
    async with api(served) as client:
        with pytest.raises(ControllerError, match="there is no artifact") as refused:
            await client.download("0" * 64, tmp_path / "target")
        assert refused.value.code == "no_artifact"
        with pytest.raises(ControllerError) as refused:
            await client.upload("0" * 64, b"other bytes")
        assert refused.value.code == "hash_mismatch"
    async with api(served, "wrong") as client:
        with pytest.raises(ControllerError):
            await client.lease()


async def test_nothing_is_told_to_a_server_of_another_ca(served: Served, stranger_ca: Path) -> None:
    async with BuilderApi(served.url, stranger_ca, served.site.tokens["builder"]) as client:
        with pytest.raises(UnavailableError, match="certificate"):
            await client.lease()
