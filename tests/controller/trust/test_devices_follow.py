"""TUF's own client as the judge: what it finds, what it refuses, and that it follows what a repository goes through."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from controller.builds import publish
from controller.builds.api import BuilderApi
from controller.builds.sign import builder_key
from controller.errors import DeniedError
from controller.trust import layout, metadata, repository
from tests.controller.trust.conftest import TENANT, Device, Served, entry

NewDevice = Callable[..., Device]


def sign_online(served: Served) -> None:
    """Sign whatever lies there with the online keys."""
    with served.database.begin() as connection:
        repository.sign_again(connection, TENANT, served.keeper.online(TENANT), time.time())


def test_a_build_is_found_with_the_bytes_of_its_envelope(served: Served, new_device: NewDevice) -> None:
    device = new_device()
    (path,) = served.publish(7)
    found = device.must_find(path)
    assert (found.length, found.hashes["sha256"]) == (10, hashlib.sha256(b"envelope 7").hexdigest())
    assert found.custom == {"version": 7}
    assert device.find(entry(8).path) is None
    (other,) = served.publish(8, profile="raspberry_pi")
    assert device.find(other) is not None
    assert device.find(entry(8).path) is None, "one profile's build is not another's"


def test_stolen_online_keys_vouch_for_no_build(served: Served, new_device: NewDevice) -> None:
    served.publish(1)
    device, thief = new_device(), CryptoSigner(Ed25519PrivateKey.generate())
    device.must_find(entry(1).path)
    role = metadata.read(served.newest("generic"), Targets).signed
    evil = entry(666)
    role.targets[evil.path] = metadata.target(evil.path, evil.envelope, {})
    role.version += 1
    online = served.keeper.online(TENANT)
    served.put("generic", metadata.sign(role, [thief, online.snapshot, online.timestamp]))
    sign_online(served)
    with pytest.raises(UnsignedMetadataError):
        device.find(evil.path)
    with pytest.raises(UnsignedMetadataError):
        new_device("fresh").find(evil.path)


def test_stolen_online_keys_delegate_to_nobody(served: Served, new_device: NewDevice) -> None:
    served.publish(1)
    device, thief = new_device(), CryptoSigner(Ed25519PrivateKey.generate())
    online = served.keeper.online(TENANT)
    top = metadata.read(served.newest(layout.TARGETS), Targets).signed
    assert top.delegations is not None
    assert top.delegations.roles is not None
    top.delegations.keys[thief.public_key.keyid] = thief.public_key
    top.delegations.roles["generic"].keyids = [thief.public_key.keyid]
    top.version += 1
    served.put(layout.TARGETS, metadata.sign(top, [thief, online.snapshot, online.timestamp]))
    sign_online(served)
    with pytest.raises(UnsignedMetadataError):
        device.find(entry(1).path)


def test_stolen_online_keys_make_no_root(served: Served, new_device: NewDevice) -> None:
    device, thief = new_device(), CryptoSigner(Ed25519PrivateKey.generate())
    online = served.keeper.online(TENANT)
    root = metadata.read(served.newest(layout.ROOT), Root).signed
    root.version += 1
    root.roles[layout.TARGETS].keyids = []
    root.add_key(thief.public_key, layout.TARGETS)
    served.put(layout.ROOT, metadata.sign(root, [thief, online.snapshot, online.timestamp]))
    with pytest.raises(UnsignedMetadataError):
        device.find(entry(1).path)


def test_an_older_state_is_refused(served: Served, new_device: NewDevice) -> None:
    """Whoever restores an old database shows devices what they have seen to be over."""
    device, late = new_device(), new_device("late")
    served.publish(1)
    old = metadata.read(served.newest(layout.TIMESTAMP), Timestamp).signed
    served.publish(2)
    device.must_find(entry(2).path)
    old.version = metadata.read(served.newest(layout.TIMESTAMP), Timestamp).signed.version + 1
    served.put(layout.TIMESTAMP, metadata.sign(old, [served.keeper.online(TENANT).timestamp]))
    with pytest.raises(BadVersionNumberError):
        device.find(entry(2).path)
    assert late.find(entry(2).path) is None, "who saw nothing newer cannot know"


@pytest.mark.parametrize("step", ["sign_again", "sign_timestamp"])
def test_what_breaks_off_in_the_middle_leaves_the_old_repository_whole(
    served: Served, new_device: NewDevice, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    served.publish(1)
    device, before = new_device(), served.versions()

    def break_off(*_: object) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(repository, step, break_off)
        with pytest.raises(Exception, match="failed at this request"):
            served.publish(2)
    assert served.versions() == before
    device.must_find(entry(1).path)
    assert device.find(entry(2).path) is None
    served.publish(2)
    device.must_find(entry(2).path)


def test_two_who_publish_at_once_both_get_in(served: Served, new_device: NewDevice) -> None:
    failed: list[BaseException] = []

    def publish(first: int) -> None:
        try:
            for number in range(first, first + 5):
                served.publish(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=publish, args=(first,)) for first in (100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    device = new_device()
    for number in (*range(100, 105), *range(200, 205)):
        device.must_find(entry(number).path)
    assert served.versions()["generic"] == 10


def test_a_role_that_outgrows_its_file_goes_over_to_bins_under_a_device_that_follows(
    served: Served, new_device: NewDevice
) -> None:
    device = new_device()
    numbers = range(layout.MAX_FLAT)
    served.publish(*numbers)
    device.must_find(entry(0).path)
    assert "generic" in served.versions()
    assert len(served.versions()) == 5
    served.publish(layout.MAX_FLAT)
    versions = served.versions()
    assert len(versions) == 5 + 2**layout.BIN_BITS
    assert versions["generic"] == 2
    for number in (0, 1, 999, layout.MAX_FLAT):
        device.must_find(entry(number).path)
    assert device.find(entry(99_999).path) is None
    served.publish(99_999)
    device.must_find(entry(99_999).path)
    assert served.versions()["generic"] == 2, "only its bin was signed again"


def test_what_expires_stops_installs_and_what_is_kept_fresh_does_not(served: Served, new_device: NewDevice) -> None:
    now = time.time()
    served.publish(1, now=now)
    device, path = new_device(), entry(1).path
    device.must_find(path, at=now + 23 * 3600)
    with pytest.raises(ExpiredMetadataError, match="timestamp"):
        device.find(path, at=now + 25 * 3600)
    assert served.keeper.keep(TENANT, now + 11 * 3600) == []
    assert served.keeper.keep(TENANT, now + 13 * 3600) == [layout.TIMESTAMP]
    device.must_find(path, at=now + 25 * 3600)
    at = now
    while at < now + 29 * layout.DAY:  # a month of a controller that does its work
        at += 0.6 * layout.DAY
        served.keeper.keep(TENANT, at)
    device.must_find(path, at=at)
    served.keeper.keep(TENANT, now + 31 * layout.DAY)
    with pytest.raises(ExpiredMetadataError, match="generic"):
        device.find(path, at=now + 31 * layout.DAY)


def test_only_its_own_tenant_reads_a_repository_and_versions_never_change(served: Served) -> None:
    (timestamp, snapshot) = (f"/tuf/{TENANT}/metadata/{name}.json" for name in ("timestamp", "1.snapshot"))
    with served.client("viewer") as client:
        answer = client.get(timestamp)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
        answer = client.get(snapshot)
        assert "immutable" in answer.headers["cache-control"]
        assert Metadata.from_bytes(answer.content).signed.type == Snapshot.type
        served.publish(1)
        assert client.get(snapshot).content == answer.content
        for name in ("root.json", "0.root.json", "9.root.json", "snapshot.json", "..%2f..%2fstate.db", "1.x.json"):
            assert client.get(f"/tuf/{TENANT}/metadata/{name}").status_code == 404, name
    with served.client("other") as client:
        assert client.get(timestamp).status_code == 404
        assert client.get("/tuf/other/metadata/timestamp.json").status_code == 200


@pytest.mark.parametrize("root", [b"", b"{}", b"[1]", b"\xff" * 10, b'{"signed": {"_type": "root"}, "signatures": []}'])
def test_what_is_no_root_is_refused_in_words(served: Served, root: bytes) -> None:
    before = served.versions()
    with served.client("admin") as client:
        answer = client.post("/api/v1/trust/root", json={"roots": [base64.b64encode(root).decode()]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] in ("bad_metadata", "bad_request")
    assert served.versions() == before


def test_a_role_in_bins_is_signed_again_in_requests_that_the_api_takes(
    served: Served, new_device: NewDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, parts = time.time(), []
    monkeypatch.setattr(layout, "MAX_FLAT", 100)
    served.publish(*range(101), now=now - 20 * layout.DAY)
    real = BuilderApi.hand_in

    async def hand_in(api: BuilderApi, roles: dict[str, bytes]) -> None:
        parts.append(sum(map(len, roles.values())))
        await real(api, roles)

    monkeypatch.setattr(BuilderApi, "hand_in", hand_in)
    monkeypatch.setattr(publish, "MAX_PART", 8_000)
    assert served.renew("generic", now)
    assert len(parts) > 3
    assert max(parts) < 10_000
    new_device().must_find(entry(5).path)
    assert not served.renew("generic", now)


def test_a_successor_takes_over_a_role_in_bins_and_another_starts_it_over(
    served: Served, new_device: NewDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layout, "MAX_FLAT", 3)
    device = new_device()
    served.publish(*range(5))
    old, successor, other = served.builder, builder_key(tmp_path / "successor"), builder_key(tmp_path / "other")
    served.let_build(successor)
    with pytest.raises(UnsignedMetadataError):
        device.find(entry(1).path)
    assert served.renew("generic", time.time(), successor, old)
    for number in range(5):
        device.must_find(entry(number).path)
    served.publish(7, key=successor)
    device.must_find(entry(7).path)
    with pytest.raises(DeniedError, match="not signed by this builder"):
        served.publish(8, key=other)
    served.let_build(successor, other)
    with pytest.raises(DeniedError, match="not signed by this builder"):
        served.publish(8, key=other)
    device.must_find(entry(1).path)
    served.let_build(other)
    served.publish(8, key=other)
    device.must_find(entry(8).path)
    assert device.find(entry(1).path) is None
    served.publish(*range(10, 15), key=other)
    for number in (8, *range(10, 15)):
        device.must_find(entry(number).path)
