"""The client workflow against a repository that is behind, mixed up or hostile: real sockets, real signatures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, TargetFile

from agent import durable
from agent.trust.metadata_fetcher import CEILING
from agent.trust.updater import answer, begin
from tests.agent.trust.conftest import Device
from tests.agent.trust.signed_repository import TOP, SignedRepository

DAY = 86_400.0
BODY = b"a signed manifest"


def test_a_first_refresh_asks_for_each_role_once_and_keeps_it(device: Device, repository: SignedRepository) -> None:
    told = device.accepts()
    assert repository.asked == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert (told.root, told.timestamp, told.snapshot, told.targets) == (1, 1, 1, 1)
    assert device.versions() == [1, 1, 1, 1]
    assert told.expires == repository.now + DAY
    assert told.issued == repository.now
    assert told.received == sum(len(repository.served[name]) for name in repository.asked[1:])
    assert not told.clock.suspect


def test_a_refresh_without_news_asks_for_two_small_files_and_writes_nothing(device: Device) -> None:
    device.accepts()
    device.repository.asked.clear()
    before = durable.crash_points()
    device.accepts()
    assert device.repository.asked == ["2.root.json", "timestamp.json"]
    assert durable.crash_points() == before


def test_targets_are_found_with_what_was_said_about_them(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "rpi5", ["builds/rpi5/*/*"], terminating=True)
    made = repository.add("rpi5", "builds/rpi5/digits/b-1.json", BODY, {"precision": "int8"})
    repository.release("rpi5", "targets")
    told = device.accepts("builds/rpi5/digits/b-1.json", "builds/rpi5/digits/b-2.json", "builds/nuc/digits/b-1.json")
    target = told.found["builds/rpi5/digits/b-1.json"]
    assert target is not None
    assert (target.length, target.sha256, target.custom) == (len(BODY), made.hashes["sha256"], {"precision": "int8"})
    assert target.file == f"builds/rpi5/digits/{target.sha256}.b-1.json"
    assert told.found["builds/rpi5/digits/b-2.json"] is None
    assert told.found["builds/nuc/digits/b-1.json"] is None


# Expiry and freeze


@pytest.mark.parametrize("role", TOP)
def test_expired_metadata_of_each_role_is_refused(device: Device, repository: SignedRepository, role: str) -> None:
    device.accepts()
    repository.expire(role)
    repository.publish(*(("root",) if role == "root" else ()))
    repository.release("targets")
    failure = device.refuses()
    assert failure.code == "expired"
    assert role in failure.message
    assert device.versions([role])[0] == (2 if role in ("root", "timestamp", "snapshot") else 1) or role != "root"


def test_an_expired_delegation_stops_what_lies_below_it(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "rpi5")
    repository.add("rpi5", "x", BODY)
    repository.expire("rpi5")
    repository.release("rpi5", "targets")
    assert device.refuses("x").code == "expired"


def test_an_online_key_that_signs_nothing_new_freezes_nobody_unseen(device: Device) -> None:
    device.accepts()
    device.now += DAY - 1
    device.accepts()
    device.now += 2
    failure = device.refuses()
    assert failure.code == "expired"
    assert "timestamp" in failure.message


def test_what_expired_on_the_disk_does_not_stop_what_is_fresh(device: Device, repository: SignedRepository) -> None:
    device.accepts()
    repository.advance(20 * DAY)
    device.now = repository.now
    assert device.accepts().timestamp == 2


def test_an_expired_first_root_leads_to_the_newest(device: Device, repository: SignedRepository) -> None:
    repository.now += 800 * DAY
    for role in TOP:
        repository.mds[role].signed.expires = repository._in(role)
    repository.publish("root")
    repository.mds["timestamp"].signed.unrecognized_fields["issued"] = int(repository.now)
    repository.release("targets")
    device.now = repository.now
    assert device.accepts(earliest=1.0).root == 2


# Rollback


def test_an_older_root_is_refused(device: Device, repository: SignedRepository) -> None:
    repository.publish("root")
    device.accepts()
    repository.served["3.root.json"] = repository.served["2.root.json"]
    assert device.refuses().code == "rollback"
    assert device.versions()[0] == 2


def test_an_older_timestamp_is_refused(device: Device, repository: SignedRepository) -> None:
    old = repository.served["timestamp.json"]
    repository.publish("timestamp")
    device.accepts()
    repository.served["timestamp.json"] = old
    assert device.refuses().code == "rollback"
    assert device.versions()[1] == 2


def test_a_timestamp_that_names_an_older_snapshot_is_refused(device: Device, repository: SignedRepository) -> None:
    repository.release()
    device.accepts()
    repository.mds["timestamp"].signed.snapshot_meta = MetaFile(1)
    repository.publish("timestamp")
    assert device.refuses().code == "rollback"
    assert device.versions() == [1, 2, 2, 1]


@pytest.mark.parametrize("role", ["targets", "rpi5"])
def test_a_snapshot_that_names_an_older_role_is_refused(
    device: Device, repository: SignedRepository, role: str
) -> None:
    repository.delegate("targets", "rpi5")
    repository.release("rpi5", "targets")
    repository.release("rpi5", "targets")
    device.accepts("x")
    repository.mds["snapshot"].signed.meta[f"{role}.json"] = MetaFile(1)
    repository.publish("snapshot", "timestamp")
    assert device.refuses().code == "rollback"


def test_a_snapshot_that_forgets_a_role_is_refused(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "rpi5")
    repository.release("rpi5", "targets")
    device.accepts()
    del repository.mds["snapshot"].signed.meta["rpi5.json"]
    repository.publish("snapshot", "timestamp")
    failure = device.refuses()
    assert failure.code == "malformed"
    assert "rpi5" in failure.message


def test_new_keys_let_a_repository_begin_anew_after_it_ran_ahead(device: Device, repository: SignedRepository) -> None:
    repository.mds["timestamp"].signed.version = 2**40
    repository.publish("timestamp", bump=False)
    assert device.accepts().timestamp == 2**40
    repository.rotate("timestamp")
    repository.publish("root")
    repository.mds["timestamp"].signed.version = 2
    repository.publish("timestamp", bump=False)
    assert device.accepts().timestamp == 2


# Mix and match


@pytest.mark.parametrize("role", ["snapshot", "targets", "rpi5"])
def test_a_file_of_another_release_is_refused(device: Device, repository: SignedRepository, role: str) -> None:
    repository.delegate("targets", "rpi5")
    repository.release("rpi5", "targets")
    repository.release("rpi5", "targets")
    newest = repository.mds[role].signed.version
    repository.served[f"{newest}.{role}.json"] = repository.served[f"{newest - 1}.{role}.json"]
    assert device.refuses("x").code == "mixed"


@pytest.mark.parametrize("role", ["snapshot", "targets", "rpi5"])
def test_a_file_of_another_version_is_refused_where_no_hash_binds_it(
    device: Device, repository: SignedRepository, role: str
) -> None:
    repository.delegate("targets", "rpi5")
    repository.publish("rpi5", "targets")
    meta = repository.mds["snapshot"].signed.meta
    for name in meta:
        meta[name] = MetaFile(2)
    repository.mds["snapshot"].signed.version = 2
    repository.publish("snapshot", bump=False)
    repository.mds["timestamp"].signed.snapshot_meta = MetaFile(2)
    repository.publish("timestamp")
    for other in ("rpi5", "targets"):
        repository.mds[other].signed.version = 2
        repository.publish(other, bump=False)
    device_before = dict(repository.served)
    repository.served[f"2.{role}.json"] = _older(repository, role)
    assert device.refuses("x").code == "mixed"
    repository.served = device_before


def _older(repository: SignedRepository, role: str) -> bytes:
    before = repository.mds[role].signed.version
    repository.mds[role].signed.version = 1
    repository.publish(role, bump=False)
    data = repository.served[f"1.{role}.json"]
    repository.mds[role].signed.version = before
    return data


def test_a_role_in_the_place_of_another_is_refused(device: Device, repository: SignedRepository) -> None:
    repository.mds["snapshot"].signed.meta["targets.json"] = MetaFile(1)
    repository.publish("snapshot", "timestamp")
    repository.served["1.targets.json"] = repository.served["timestamp.json"]
    assert device.refuses().code == "malformed"


# Keys


def test_roots_are_followed_one_by_one(device: Device, repository: SignedRepository) -> None:
    for _ in range(4):
        old = repository.signers["root"]
        repository.rotate("root")
        fresh = repository.signers["root"]
        repository.signers["root"] = [*old, *fresh]
        repository.publish("root")
        repository.signers["root"] = fresh
    repository.asked.clear()
    assert device.accepts().root == 5
    assert repository.asked[:5] == [f"{version}.root.json" for version in range(2, 7)]
    assert (device.directory / "root.json").read_bytes() == repository.served["5.root.json"]
    repository.asked.clear()
    device.accepts()
    assert repository.asked[0] == "6.root.json"


@pytest.mark.parametrize("signers", ["old", "new"])
def test_a_new_root_needs_the_old_keys_and_the_new_ones(
    device: Device, repository: SignedRepository, signers: str
) -> None:
    old = repository.signers["root"]
    repository.rotate("root")
    if signers == "old":
        repository.signers["root"] = old
    repository.publish("root")
    assert device.refuses().code == "unsigned"
    assert device.versions()[0] == 1


def test_a_missing_intermediate_root_leads_no_further(device: Device, repository: SignedRepository) -> None:
    repository.publish("root")
    repository.publish("root")
    del repository.served["2.root.json"]
    assert device.accepts().root == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_after_a_rotation_only_the_new_key_is_believed(device: Device, repository: SignedRepository, role: str) -> None:
    device.accepts()
    old = repository.signers[role]
    repository.rotate(role)
    repository.publish("root")
    fresh, repository.signers[role] = repository.signers[role], old
    repository.release("targets")
    assert device.refuses().code == "unsigned"
    repository.signers[role] = fresh
    repository.release("targets")
    assert device.accepts().root == 2


def test_a_threshold_counts_keys_and_not_signatures(device: Device, repository: SignedRepository) -> None:
    repository.rotate("targets", keys=3, threshold=2)
    repository.publish("root")
    one, two, _three = repository.signers["targets"]
    repository.signers["targets"] = [one]
    repository.release("targets")
    assert device.refuses().code == "unsigned"
    repository.signers["targets"] = [one, CryptoSigner.generate_ed25519()]
    repository.release("targets")
    assert device.refuses().code == "unsigned"
    repository.signers["targets"] = [one, two]
    repository.release("targets")
    assert device.accepts().targets == 4


def test_a_delegation_has_a_threshold_of_its_own(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "software", ["software/*/*"], threshold=2)
    repository.add("software", "software/agent/1", BODY)
    both = repository.signers["software"]
    repository.signers["software"] = both[:1]
    repository.release("software", "targets")
    assert device.refuses("software/agent/1").code == "unsigned"
    repository.signers["software"] = both
    repository.release("software")
    assert device.accepts("software/agent/1").found["software/agent/1"]


def test_a_changed_byte_is_found(device: Device, repository: SignedRepository) -> None:
    data = repository.served["timestamp.json"]
    repository.served["timestamp.json"] = data.replace(b'"version":1', b'"version":7', 1)
    assert device.refuses().code == "unsigned"


# Delegations


def test_delegations_are_asked_in_their_order_and_a_terminating_one_ends_it(
    device: Device, repository: SignedRepository
) -> None:
    for name, terminating in (("a", False), ("b", True), ("c", False)):
        repository.delegate("targets", name, terminating=terminating)
    for name in ("b", "c"):
        repository.add(name, "both", name.encode())
    repository.add("c", "only-c", BODY)
    repository.release("a", "b", "c", "targets")
    told = device.accepts("both", "only-c")
    target = told.found["both"]
    assert target is not None
    assert target.sha256 == TargetFile.from_data("both", b"b", ["sha256"]).hashes["sha256"]
    assert told.found["only-c"] is None
    assert [name for name in repository.asked if name[2:] in ("a.json", "b.json", "c.json")] == ["1.a.json", "1.b.json"]


def test_a_role_vouches_only_for_the_paths_that_were_given_to_it(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "rpi5", ["builds/rpi5/*/*"], terminating=True)
    repository.add("rpi5", "builds/nuc/digits/b-1.json", BODY)
    repository.add("rpi5", "builds/rpi5/digits/deeper/b-1.json", BODY)
    repository.release("rpi5", "targets")
    told = device.accepts("builds/nuc/digits/b-1.json", "builds/rpi5/digits/deeper/b-1.json")
    assert set(told.found.values()) == {None}


def test_a_role_that_signed_nothing_yet_vouches_for_nothing(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "pi4", ["builds/pi4/*/*"], terminating=True)
    repository.delegate("targets", "pi5", ["builds/pi5/*/*"], terminating=True)
    repository.add("pi5", "builds/pi5/digits/1", BODY)
    repository.release("pi5", "targets")
    told = device.accepts("builds/pi4/digits/1", "builds/pi5/digits/1")
    assert told.found["builds/pi4/digits/1"] is None
    assert told.found["builds/pi5/digits/1"]
    repository.expire("pi5")
    repository.release("pi5")
    assert device.refuses("builds/pi4/digits/1", "builds/pi5/digits/1").code == "expired"


def test_in_a_diamond_a_role_is_judged_by_who_leads_to_it(device: Device, repository: SignedRepository) -> None:
    """Two parents name one child with different keys; only the parent on the way there counts."""
    repository.delegate("targets", "left", ["left/*"], terminating=True)
    repository.delegate("targets", "right", ["right/*"], terminating=True)
    repository.delegate("left", "child", ["*/*"])
    good = repository.signers["child"]
    repository.signers["child"] = [CryptoSigner.generate_ed25519()]
    repository.delegate("right", "child", ["*/*"])
    repository.signers["child"] = good
    repository.add("child", "left/x", BODY)
    repository.add("child", "right/x", BODY)
    repository.release("child", "left", "right", "targets")
    assert device.accepts("left/x").found["left/x"]
    assert device.refuses("right/x").code == "unsigned"
    assert device.refuses("left/x", "right/x").code == "unsigned"


def test_a_circle_of_delegations_ends(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "a")
    repository.delegate("a", "b")
    repository.delegate("b", "a")
    repository.release("a", "b", "targets")
    assert device.accepts("x").found["x"] is None


def test_no_more_than_32_delegations_are_visited(device: Device, repository: SignedRepository) -> None:
    names = [f"r{number}" for number in range(40)]
    for name in names:
        repository.delegate("targets", name)
    repository.add("r39", "x", BODY)
    repository.release(*names, "targets")
    assert device.accepts("x").found["x"] is None
    assert len([name for name in repository.asked if name.startswith("1.r")]) == 32


def test_in_hash_bins_one_small_role_is_fetched(device: Device, repository: SignedRepository) -> None:
    repository.delegate("targets", "rpi5", ["builds/rpi5/*/*"], terminating=True)
    names = repository.delegate_bins("rpi5", 4, "rpi5-bin")
    path = "builds/rpi5/digits/b-1.json"
    delegations = repository.targets("rpi5").delegations
    assert delegations is not None
    (name, _), *_ = delegations.get_roles_for_target(path)
    repository.add(name, path, BODY)
    repository.release(*names, "rpi5", "targets")
    assert device.accepts(path).found[path]
    assert [asked for asked in repository.asked if "bin" in asked] == [f"1.{name}.json"]


@pytest.mark.parametrize("name", ["?", "#", "/role", "../role", "a b", "ä"])
def test_a_role_may_have_any_name_and_reaches_no_other_place(
    device: Device, repository: SignedRepository, name: str
) -> None:
    repository.delegate("targets", name)
    repository.add(name, "x", BODY)
    repository.release(name, "targets")
    assert device.accepts("x").found["x"]
    assert sorted(path.name for path in device.directory.parent.iterdir()) == ["trust"]
    assert len(list(device.directory.glob("*.json"))) == 5


# What is no metadata


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
@pytest.mark.parametrize(
    "data", [b"<html>Please log in</html>", b"", b"[" * 100_000, b"\xff\xfe", b'{"signed": {}, "signatures": []}']
)
def test_what_is_no_metadata_is_refused(device: Device, repository: SignedRepository, name: str, data: bytes) -> None:
    repository.served[name] = data
    failure = device.refuses()
    assert failure.code in (
        ("malformed", "oversized", "mixed") if name != "timestamp.json" else ("malformed", "oversized")
    )


@pytest.mark.parametrize(
    ("name", "size"), [("2.root.json", 512_001), ("timestamp.json", 16_385), ("1.snapshot.json", 2_000_001)]
)
def test_metadata_that_is_too_long_is_not_read_to_its_end(
    device: Device, repository: SignedRepository, name: str, size: int
) -> None:
    repository.mds["timestamp"].signed.snapshot_meta = MetaFile(1)
    repository.publish("timestamp")
    repository.served[name] = b" " * size
    failure = device.refuses()
    assert failure.code == "oversized"
    assert "hash bins" in failure.message


def test_a_length_that_the_snapshot_names_is_no_leave_for_any_length(
    device: Device, repository: SignedRepository
) -> None:
    repository.served["2.targets.json"] = b" " * (CEILING + 1)
    repository.mds["snapshot"].signed.meta["targets.json"] = MetaFile(2, CEILING + 1)
    repository.publish("snapshot", "timestamp")
    assert device.refuses().code == "oversized"


def test_a_missing_file_is_told_with_what_to_do(device: Device, repository: SignedRepository) -> None:
    del repository.served["1.snapshot.json"]
    assert device.refuses().code == "not_found"


def test_a_target_without_a_known_hash_is_refused(device: Device, repository: SignedRepository) -> None:
    target = repository.add("targets", "x", BODY)
    target.hashes = {"md5": "0" * 32}
    repository.release("targets")
    assert device.refuses("x").code == "malformed"


# The directory


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(b"\0" * 3000)


def _directory(path: Path) -> None:
    path.unlink()
    (path / "below").mkdir(parents=True)


@pytest.mark.parametrize("name", ["root.json", "timestamp.json", "snapshot.json", "targets.json", "rpi5.json",
                                  "root_history/1.root.json", "root_history/2.root.json", "floor"])  # fmt: skip
@pytest.mark.parametrize("damage", [_empty, _garbage, Path.unlink, _directory], ids=["empty", "zeros", "gone", "dir"])
def test_a_damaged_file_mends_itself(
    device: Device, repository: SignedRepository, name: str, damage: Callable[[Path], None]
) -> None:
    repository.publish("root")
    repository.delegate("targets", "rpi5")
    repository.release("rpi5", "targets")
    first = device.accepts("x")
    damage(device.directory / name)
    again = device.accepts("x")
    assert (again.root, again.timestamp, again.snapshot, again.targets) == (2, 2, 2, 2) == (
        first.root, first.timestamp, first.snapshot, first.targets)  # fmt: skip
    assert device.versions() == [2, 2, 2, 2]


def test_a_root_that_somebody_planted_is_not_believed(device: Device, repository: SignedRepository) -> None:
    stranger = SignedRepository(repository.now)
    try:
        device.accepts()
        for name in ("root.json", "root_history/1.root.json", "timestamp.json"):
            source = stranger.served["1.root.json" if "root" in name else name]
            (device.directory / name).unlink()
            (device.directory / name).write_bytes(source)
        device.request = device.request.__class__(
            directory=str(device.directory), url=stranger.url, root=repository.first_root
        )
        assert device.refuses().code == "unsigned"
    finally:
        stranger.close()


def test_what_a_kill_left_is_swept_and_nothing_of_anybody_else(device: Device) -> None:
    device.accepts()
    for name in (".timestamp.json.new", "root_history/.1.root.json.new"):
        (device.directory / name).write_bytes(b"half")
    foreign = [device.directory / name for name in ("tmp1", ".profile", "notes.new", "holiday.json/picture")]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"somebody's")
    device.accepts()
    assert not list(device.directory.rglob("*.json.new"))
    assert all(path.exists() for path in foreign)


def test_at_every_cut_the_directory_is_good_for_the_next_refresh(device: Device, repository: SignedRepository) -> None:
    repository.publish("root")
    repository.release("targets")
    cut_at = 1
    while True:
        left = cut_at

        def cut(name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise durable.PowerCut(name)

        durable.set_hook(cut)
        try:
            told = answer(device.request, device.now)
        except durable.PowerCut:
            told = None
        finally:
            durable.set_hook(None)
        if told is not None:
            break
        assert device.accepts().root == 2
        for path in sorted(device.directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        device.directory.rmdir()
        cut_at += 1
    assert cut_at > 20


def test_metadata_is_synced_before_it_is_believed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    device.accepts()
    for role in ("timestamp", "snapshot", "targets"):
        assert f".{role}.json.new" in synced


def test_a_full_disk_is_told(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise durable.disk_error(OSError(28, "No space left on device"), path)

    monkeypatch.setattr(durable, "write_atomic", full)
    assert device.refuses().code == "disk_full"


@pytest.mark.parametrize("root", [b"", b"{}", b"<html>", b"[" * 100_000])
def test_a_root_that_is_none_asks_nobody(device: Device, repository: SignedRepository, root: bytes) -> None:
    assert device.refuses(root=root).code == "bad_root"
    assert repository.asked == []
    failure = begin(device.directory, root)
    assert failure is not None
    assert failure.code == "bad_root"


def test_another_refresh_of_the_same_directory_waits_for_its_turn(device: Device) -> None:
    import fcntl

    device.accepts()
    with (device.directory / ".lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        from agent.trust.metadata_fetcher import Pace

        assert device.refuses(pace=Pace(deadline=0.2)).code == "busy"
    device.accepts()
