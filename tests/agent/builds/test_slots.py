"""Installed builds and their three links."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from agent import durable
from agent.builds.slots import ENVELOPE, MANIFEST, Slots
from agent.builds.store import Store
from agent.errors import TrustError
from wire import codec
from wire.manifest import Figures, File, Limits, Manifest, Target, Tensor, build_id

C = "model:digits"
GOLDEN = b"golden"


class Disk:
    """A store and slots, and builds of two small files."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "blobs", 0)
        self.root = root / "builds"
        self.slots = Slots(self.root)

    def add(self, body: bytes) -> str:
        sha256 = hashlib.sha256(body).hexdigest()
        self.store.part(sha256).write_bytes(body)
        self.store.adopt(self.store.part(sha256), sha256)
        return sha256

    def install(self, body: bytes) -> str:
        manifest, payload = self.manifest(body)
        self.slots.install(C, manifest, payload, b"envelope", self.store)
        return build_id(payload)

    def manifest(self, body: bytes) -> tuple[Manifest, bytes]:
        files = [
            File(path=path, size=len(data), sha256=self.add(data), role=role)
            for path, data, role in (("model.onnx", body, "model"), ("golden.npz", GOLDEN, "golden"))
        ]
        tensor = Tensor(name="x", datatype="FP32", shape=[-1])
        manifest = Manifest(
            tenant="t", model="digits", model_version=1, precision="fp32",
            target=Target(profile="p", arch=[], runtime="onnxruntime", min_runtime="1"), files=files, inputs=[tensor],
            outputs=[tensor],
            figures=Figures(accuracy=None, accuracy_low=None, accuracy_high=None, samples=0, p50_ms=1, p95_ms=1,
                            p50_ms_batch8=None, peak_memory_bytes=1, size_bytes=1, measured_on=""),
            limits=Limits(max_p95_ms=1, max_memory_bytes=1, tolerance=0), reasons=[], created=0,
        )  # fmt: skip
        return manifest, codec.encode(manifest)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_an_installed_build_has_its_files_its_manifest_as_signed_and_its_envelope(disk: Disk) -> None:
    manifest, payload = disk.manifest(b"one")
    directory = disk.slots.install(C, manifest, payload, b"envelope", disk.store)
    assert directory == disk.root / "model/digits" / build_id(payload)
    assert (directory / MANIFEST).read_bytes() == payload
    assert (directory / ENVELOPE).read_bytes() == b"envelope"
    assert (directory / "model.onnx").read_bytes() == b"one"
    assert disk.slots.verify(C, build_id(payload)) == disk.slots.installed(C, build_id(payload)) == manifest


def test_where_hard_links_are_impossible_the_bytes_are_copied(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "link", refuse)
    build = disk.install(b"one")
    disk.slots.verify(C, build)
    assert (disk.slots.directory(C, build) / "model.onnx").stat().st_nlink == 1


def test_a_blob_that_rotted_is_not_installed(disk: Disk) -> None:
    manifest, payload = disk.manifest(b"one")
    disk.store.path(manifest.files[0].sha256).write_bytes(b"0ne")
    with pytest.raises(TrustError) as caught:
        disk.slots.install(C, manifest, payload, b"", disk.store)
    assert caught.value.code == "wrong_hash"
    assert not disk.slots.directory(C, build_id(payload)).exists()


def test_a_missing_blob_is_told_apart(disk: Disk) -> None:
    manifest, payload = disk.manifest(b"one")
    disk.store.path(manifest.files[0].sha256).unlink()
    with pytest.raises(TrustError) as caught:
        disk.slots.install(C, manifest, payload, b"", disk.store)
    assert caught.value.code == "missing"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("model.onnx", b"0ne", "wrong_hash"), ("model.onnx", b"on", "wrong_hash"), (MANIFEST, b"{}", "malformed")],
)
def test_damage_is_found_by_reading(disk: Disk, name: str, content: bytes, code: str) -> None:
    build = disk.install(b"one")
    (disk.slots.directory(C, build) / name).write_bytes(content)
    with pytest.raises(TrustError) as caught:
        disk.slots.verify(C, build)
    assert caught.value.code == code


def test_a_file_of_another_size_or_gone_is_found_without_reading(disk: Disk) -> None:
    build = disk.install(b"one")
    path = disk.slots.directory(C, build) / "model.onnx"
    path.write_bytes(b"on")
    assert disk.slots.installed(C, build) is None
    path.unlink()
    assert disk.slots.installed(C, build) is None
    with pytest.raises(TrustError):
        disk.slots.verify(C, build)


def test_commit_keeps_the_one_before_and_may_be_repeated_after_any_cut(disk: Disk) -> None:
    one, two, three = (disk.install(body) for body in (b"one", b"two", b"three"))
    disk.slots.commit(C, one)
    disk.slots.commit(C, two)
    names: list[str] = []
    durable.set_hook(names.append)
    disk.slots.commit(C, three)
    durable.set_hook(None)
    for number in range(1, len(names) + 1):
        disk.slots.commit(C, one)
        disk.slots.commit(C, two)
        left = number

        def cut(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise durable.PowerCut(name)

        durable.set_hook(cut)
        with pytest.raises(durable.PowerCut):
            disk.slots.commit(C, three)
        durable.set_hook(None)
        assert disk.slots.committed(C) in (two, three)
        disk.slots.commit(C, three)
        assert (disk.slots.committed(C), disk.slots.previous(C)) == (three, two)


def test_only_an_installed_build_is_pointed_at(disk: Disk) -> None:
    with pytest.raises(TrustError):
        disk.slots.activate(C, "b-" + "0" * 32)
    assert disk.slots.current(C) is None


def test_prune_keeps_what_a_link_names_and_what_it_is_told(disk: Disk) -> None:
    one, two, three, four, five = (disk.install(body) for body in (b"1", b"2", b"3", b"4", b"5"))
    disk.slots.commit(C, one)
    disk.slots.commit(C, two)
    disk.slots.activate(C, three)
    home = disk.root / "model/digits"
    (home / f"{five}.tmp").mkdir()
    (home / f".{five}.gone").mkdir()
    disk.slots.prune(C, {four})
    assert {path.name for path in home.iterdir()} == {one, two, three, four, "current", "committed", "previous"}
    assert disk.slots.components() == [C]
    assert set(disk.slots.kept(C)) == {one, two, three, four}


@pytest.mark.parametrize("component", ["", "model:", "model:../x", "model:A", "agent:x", "model:a\n", "model:a/b"])
def test_a_component_that_is_none_leads_nowhere(disk: Disk, component: str) -> None:
    with pytest.raises(TrustError):
        disk.slots.directory(component, "b-" + "0" * 32)


@pytest.mark.parametrize("build", ["", "current", "../b-" + "0" * 32, "b-" + "0" * 31, "b-" + "0" * 32 + "\n"])
def test_a_build_that_is_none_leads_nowhere(disk: Disk, build: str) -> None:
    with pytest.raises(TrustError):
        disk.slots.directory(C, build)


def test_a_link_that_somebody_bent_is_not_followed(disk: Disk) -> None:
    disk.install(b"one")
    (disk.root / "model/digits/current").symlink_to("/etc")
    assert disk.slots.current(C) is None
