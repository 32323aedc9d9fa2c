"""`muster keys` against a real controller: what ceremonies make, what devices do with it, and all that can go wrong."""

from __future__ import annotations

import json
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, UnsignedMetadataError
from tuf.api.metadata import Root, Targets

from controller.builds.sign import builder_key
from controller.commands import ceremonies
from controller.database.tables import trust_metadata
from controller.errors import ControllerError, UnavailableError
from controller.trust import layout, metadata, repository, store, trial
from controller.trust.keeping import Keeper
from tests.controller.trust.conftest import Device, Done, Served, entry

PATH = entry(1).path
Muster = Callable[..., Done]


@pytest.fixture
def media(tmp_path: Path, served: Served) -> dict[str, Path]:
    """Directories as if on media of their own; one build is published."""
    served.publish(1)
    found = {name: tmp_path / f"medium-{name}" for name in ("a", "b", "c", "d", "e", "t", "u")}
    for directory in found.values():
        directory.mkdir()
    return found


def begin(muster: Muster, media: dict[str, Path], *more: object) -> Done:
    roots = [part for name in "abc" for part in ("--root", media[name])]
    return muster("keys", "init", *roots, "--targets", media["t"], *more)


def held(directory: Path) -> list[Path]:
    return sorted(directory.glob("muster-*.pem"))


def keyid(directory: Path) -> str:
    (file,) = held(directory)
    return file.stem.rsplit("-", 1)[1]


def test_offline_keys_take_over_and_a_device_that_joined_before_follows(
    muster: Muster, media: dict[str, Path], served: Served, new_device: Callable[..., Device]
) -> None:
    device = new_device()
    device.must_find(PATH)
    done = begin(muster, media, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["versions"] == {"root": 2, "targets": 2}
    assert said["trial_keys_removed"] is True
    assert not served.keeper.trial_directory("acme").exists()
    files = [file for name in "abct" for file in held(media[name])]
    assert sorted(said["made"]) == sorted(map(str, files))
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    device.must_find(PATH)
    new_device("late").must_find(PATH)
    status = json.loads(muster("keys", "status", "--json").out)
    assert status["trial"] is False
    assert status["tenant"] == "acme"
    assert {key["keyid"][:16] for key in status["keys"] if key["role"] == "root"} == {keyid(media[n]) for n in "abc"}


def test_nothing_is_vouched_for_without_the_offline_keys_from_then_on(
    muster: Muster, media: dict[str, Path], served: Served, new_device: Callable[..., Device]
) -> None:
    """Trial keys that somebody copied before the ceremony are worth nothing after it."""
    kept = {file.name: file.read_bytes() for file in served.keeper.trial_directory("acme").iterdir()}
    assert begin(muster, media).code == 0
    thief = served.keeper.trial_directory("acme")
    thief.mkdir()
    for name, content in kept.items():
        (thief / name).write_bytes(content)
    before = served.versions()
    done = muster("keys", "renew", "--keys", media["a"], "--keys", thief)
    assert done.code == 2
    assert "root keys that hold now must sign and 1 is here" in done.err
    assert served.versions() == before


def test_status_says_in_words_who_signs_what_and_what_must_be_done(
    muster: Muster, media: dict[str, Path], served: Served
) -> None:
    done = muster("keys", "status")
    assert "with keys for trial only" in done.out
    assert "`muster keys init` moves them away" in done.err
    assert begin(muster, media).code == 0
    done = muster("keys", "status")
    assert "people, with keys kept offline" in done.out
    assert "trial" not in done.out + done.err
    assert keyid(media["a"]) in done.out
    assert re.search(rf"{served.builder_keyid()[:16]} +builder", done.out)


def test_a_second_init_is_refused_and_leaves_nothing(muster: Muster, media: dict[str, Path]) -> None:
    assert begin(muster, media).code == 0
    again = muster("keys", "init", *[p for n in "deu" for p in ("--root", media[n])], "--targets", media["u"])
    assert again.code == 5
    assert "muster keys rotate" in again.err
    assert [list(media[name].iterdir()) for name in "deu"] == [[], [], []]


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda m: {**m, "b": m["b"] / "mistyped"}, 2, "put the medium in, or correct the name"),
        (lambda m: {**m, "b": m["a"]}, 5, "are the same directory"),
        (lambda m: {**m, "t": m["t"] / "mistyped"}, 2, "put the medium in, or correct the name"),
    ],
)
def test_a_wrong_directory_is_told_and_nothing_is_made(
    muster: Muster,
    media: dict[str, Path],
    served: Served,
    change: Callable[[dict[str, Path]], dict[str, Path]],
    code: int,
    word: str,
) -> None:
    before = served.versions()
    done = begin(muster, change(media))
    assert (done.code, word in done.err) == (code, True), done.err
    assert all(list(directory.iterdir()) == [] for directory in media.values())
    assert served.versions() == before


def test_a_file_where_a_directory_is_meant(muster: Muster, media: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = begin(muster, media | {"c": tmp_path / "file"})
    assert (done.code, "is no directory" in done.err) == (2, True)


def test_what_the_controller_refuses_leaves_no_key(
    muster: Muster, media: dict[str, Path], served: Served, tmp_path: Path
) -> None:
    served.login(tmp_path / "login.json", "operator")
    done = begin(muster, media)
    assert done.code == 4
    assert "trust.manage" in done.err
    assert all(list(directory.iterdir()) == [] for directory in media.values())


def test_two_of_three_root_keys_renew_and_one_does_not(
    muster: Muster, media: dict[str, Path], served: Served, new_device: Callable[..., Device]
) -> None:
    assert begin(muster, media).code == 0
    device = new_device()
    done = muster("keys", "renew", "--keys", media["a"], "--keys", media["t"])
    assert done.code == 2
    assert all(keyid(media[name]) in done.err for name in "bc"), done.err
    assert keyid(media["a"]) not in done.err
    done = muster("keys", "renew", "--keys", media["a"], "--keys", media["b"])
    assert done.code == 2
    assert keyid(media["t"]) in done.err
    done = muster("keys", "renew", "--keys", media["c"], "--keys", media["b"], "--keys", media["t"], "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["versions"] == {"root": 3, "targets": 3}
    device.must_find(PATH)


def test_every_root_key_is_rotated_and_devices_follow_over_all_versions(
    muster: Muster, media: dict[str, Path], served: Served, new_device: Callable[..., Device]
) -> None:
    first = new_device()
    assert begin(muster, media).code == 0
    old = {keyid(media[name]) for name in "abc"}
    keys = [part for name in "abt" for part in ("--keys", media[name])]
    new = [part for name in "deu" for part in ("--new", media[name])]
    done = muster("keys", "rotate", "root", *keys, *new)
    assert done.code == 0, done.err
    status = json.loads(muster("keys", "status", "--json").out)
    now = {key["keyid"][:16] for key in status["keys"] if key["role"] == "root"}
    assert now == {keyid(media[name]) for name in "deu"}
    assert not now & old
    first.must_find(PATH)
    done = muster("keys", "renew", *keys)
    assert done.code == 2, "the old keys hold no more"
    done = muster("keys", "renew", *[part for name in "dut" for part in ("--keys", media[name])])
    assert done.code == 0, done.err
    first.must_find(PATH)


def test_a_lost_root_key_is_revoked_with_one_in_its_place(
    muster: Muster, media: dict[str, Path], new_device: Callable[..., Device]
) -> None:
    assert begin(muster, media).code == 0
    device, lost = new_device(), keyid(media["a"])
    keys = [part for name in "bct" for part in ("--keys", media[name])]
    done = muster("keys", "revoke", lost[:8], *keys, "--new", media["d"], "--json")
    assert done.code == 0, done.err
    device.must_find(PATH)
    status = json.loads(muster("keys", "status", "--json").out)
    assert lost not in {key["keyid"][:16] for key in status["keys"]}
    done = muster("keys", "revoke", lost[:8], *keys, "--new", media["e"])
    assert done.code == 3
    assert "no key in use begins with" in done.err
    assert held(media["e"]) == []


def test_a_root_key_less_is_possible_down_to_two(muster: Muster, media: dict[str, Path]) -> None:
    assert begin(muster, media).code == 0
    a, b = keyid(media["a"]), keyid(media["b"])
    keys = [part for name in "bct" for part in ("--keys", media[name])]
    assert muster("keys", "revoke", a, *keys).code == 0
    done = muster("keys", "revoke", b, *keys)
    assert done.code == 2
    assert "1 root keys would be left" in done.err


def test_the_targets_key_is_rotated_and_revoked(
    muster: Muster, media: dict[str, Path], new_device: Callable[..., Device]
) -> None:
    assert begin(muster, media).code == 0
    device, old = new_device(), keyid(media["t"])
    roots = [part for name in "ab" for part in ("--keys", media[name])]
    done = muster("keys", "rotate", "targets", *roots, "--new", media["u"])
    assert done.code == 0, done.err
    device.must_find(PATH)
    done = muster("keys", "renew", *roots, "--keys", media["t"])
    assert done.code == 2
    assert old not in done.err
    done = muster("keys", "revoke", keyid(media["u"]), *roots)
    assert (done.code, "with --new" in done.err) == (2, True)
    done = muster("keys", "revoke", keyid(media["u"]), *roots, "--new", media["d"])
    assert done.code == 0, done.err
    device.must_find(PATH)


def test_encrypted_keys_open_with_their_passphrase_only(muster: Muster, media: dict[str, Path], tmp_path: Path) -> None:
    right, wrong, short = tmp_path / "right", tmp_path / "wrong", tmp_path / "short"
    right.write_text("correct horse battery\n")
    wrong.write_text("incorrect horse battery\n")
    short.write_text("short\n")
    done = begin(muster, media, "--encrypt", "--passphrase-file", short)
    assert (done.code, "8 at least" in done.err) == (2, True)
    assert begin(muster, media, "--encrypt", "--passphrase-file", right).code == 0
    assert b"ENCRYPTED" in held(media["a"])[0].read_bytes()
    keys = [part for name in "abt" for part in ("--keys", media[name])]
    done = muster("keys", "renew", *keys, "--passphrase-file", wrong)
    assert (done.code, "the passphrase is wrong" in done.err) == (2, True), done.err
    done = muster("keys", "renew", *keys)
    assert (done.code, "--passphrase-file" in done.err) == (2, True), done.err
    done = muster("keys", "renew", *keys, "--passphrase-file", wrong, "--passphrase-file", right)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n", b"x" * 20_000]
)
def test_a_broken_key_file_is_told(muster: Muster, media: dict[str, Path], content: bytes) -> None:
    assert begin(muster, media).code == 0
    (file,) = held(media["a"])
    file.write_bytes(content)
    done = muster("keys", "renew", *[part for name in "abct" for part in ("--keys", media[name])])
    assert (done.code, str(file) in done.err, "another copy" in done.err) == (2, True, True), done.err


def test_a_key_under_another_ones_name_is_told(muster: Muster, media: dict[str, Path]) -> None:
    assert begin(muster, media).code == 0
    (a,), (b,) = held(media["a"]), held(media["b"])
    a.write_bytes(b.read_bytes())
    done = muster("keys", "renew", *[part for name in "act" for part in ("--keys", media[name])])
    assert (done.code, "another key than its name says" in done.err) == (2, True), done.err


def test_a_controller_that_shows_another_root_has_nothing_signed(
    muster: Muster, media: dict[str, Path], tmp_path: Path, served: Served
) -> None:
    """The keys' directories remember what was signed: a login at another tenant is not mistaken for this one."""
    assert begin(muster, media).code == 0
    with served.database.read() as connection:
        before = store.newest(connection, "other", layout.ROOT)
    served.login(tmp_path / "login.json", "other")
    roots = [part for name in "abc" for part in ("--root", media[name])]
    done = muster("keys", "init", *roots, "--targets", media["t"])
    assert done.code == 4
    assert "sign nothing until you know" in done.err.lower()
    with served.database.read() as connection:
        assert store.newest(connection, "other", layout.ROOT) == before
    assert all(len(held(media[name])) == 1 for name in "abct"), "its new keys are gone, the old ones are there"


def test_an_answer_that_gets_lost_is_finished_later(
    muster: Muster, media: dict[str, Path], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:

    real = ceremonies._post

    def lose(api: object, ceremony: object) -> None:
        real(api, ceremony)  # type: ignore[arg-type]
        raise UnavailableError("the line broke", "unreachable")

    monkeypatch.setattr(ceremonies, "_post", lose)
    done = begin(muster, media)
    monkeypatch.setattr(ceremonies, "_post", real)
    assert done.code == 6
    (file,) = media["a"].glob("muster-ceremony-*.json")
    assert f"muster keys finish {file}" in done.err
    assert len(held(media["a"])) == 1, "the keys that hold now are kept"
    assert served.versions()["root"] == 2
    done = muster("keys", "finish", file, "--json")
    assert (done.code, json.loads(done.out)) == (0, {"sent_again": False}), done.err
    assert not file.exists()
    done = muster("keys", "renew", *[part for name in "abt" for part in ("--keys", media[name])])
    assert done.code == 0, done.err


def test_what_was_not_taken_is_sent_again(
    muster: Muster, media: dict[str, Path], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: object) -> None:
        raise UnavailableError("the line broke", "unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(ceremonies, "_post", fail)
        assert begin(muster, media).code == 6
    (file,) = media["a"].glob("muster-ceremony-*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    done = muster("keys", "finish", file, "--json")
    assert (done.code, json.loads(done.out)) == (0, {"sent_again": True}), done.err
    assert served.versions()["root"] == 2
    done = muster("keys", "finish", file)
    assert (done.code, str(file) in done.err) == (2, True)


def test_an_expired_root_is_told_and_mended(
    muster: Muster,
    media: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    new_device: Callable[..., Device],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(repository, "_check_alive", lambda *_: None)
        patch.setattr(layout, "LIFETIMES", layout.LIFETIMES | {layout.ROOT: -10.0})
        assert begin(muster, media).code == 0
    device = new_device()
    with pytest.raises(ExpiredMetadataError):
        device.find(PATH)
    assert "root has expired: devices install nothing" in muster("keys", "status").err
    done = muster("keys", "renew", *[part for name in "abt" for part in ("--keys", media[name])])
    assert done.code == 0, done.err
    assert "root expired on" in done.err
    device.must_find(PATH)


@pytest.mark.parametrize("role", layout.ONLINE)
def test_a_stolen_online_key_is_rotated_away(
    muster: Muster, media: dict[str, Path], served: Served, new_device: Callable[..., Device], role: str
) -> None:
    assert begin(muster, media).code == 0
    device, stolen = new_device(), served.keeper.online("acme")
    device.must_find(PATH)
    keys = [part for name in "abt" for part in ("--keys", media[name])]
    done = muster("keys", "revoke", stolen.public(role).keyid[:12], *keys, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["online_keys_changed"] == [role]
    device.must_find(PATH)
    served.publish(2)
    device.must_find(entry(2).path)
    assert list((served.keeper.directory / "acme").glob("*.next.pem")) == []
    with served.database.begin() as connection:
        repository.sign_again(connection, "acme", stolen, time.time())
    with pytest.raises(UnsignedMetadataError):
        device.find(PATH)
    done = muster("keys", "rotate", role, *keys)
    assert done.code == 0, done.err
    device.must_find(PATH)


def test_a_crash_before_the_new_online_key_is_in_its_place_is_mended(
    muster: Muster,
    media: dict[str, Path],
    served: Served,
    new_device: Callable[..., Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert begin(muster, media).code == 0
    keys = [part for name in "abt" for part in ("--keys", media[name])]
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "settle", lambda *_: [])
        assert muster("keys", "rotate", "timestamp", *keys).code == 0
    device = new_device()
    device.must_find(PATH)
    later = time.time() + 13 * 3600
    assert served.keeper.keep("acme", later) == [layout.TIMESTAMP]
    device.must_find(PATH, at=later)


def test_a_stolen_builders_key_vouches_for_nothing_any_more(
    muster: Muster, media: dict[str, Path], served: Served, new_device: Callable[..., Device], tmp_path: Path
) -> None:
    assert begin(muster, media).code == 0
    device, keys = new_device(), [part for name in "abt" for part in ("--keys", media[name])]
    device.must_find(PATH)
    done = muster("keys", "revoke", served.builder_keyid()[:12], *keys)
    assert (done.code, "no builder would be left" in done.err) == (2, True), done.err
    fresh = builder_key(tmp_path / "fresh")
    (tmp_path / "fresh.pub").write_text(fresh.public + "\n")
    done = muster("keys", "rotate", "builder", *keys, "--builder", tmp_path / "fresh.pub")
    assert done.code == 0, done.err
    with pytest.raises(UnsignedMetadataError):
        device.find(PATH)
    with pytest.raises(ControllerError, match="0 of the keys"):
        served.publish(2)
    served.publish(3, key=fresh)
    device.must_find(entry(3).path)
    assert device.find(PATH) is None, "what the stolen key signed is gone"
    served.publish(4, key=fresh)
    device.must_find(entry(4).path)


def test_a_file_that_is_no_builders_key_is_told(muster: Muster, media: dict[str, Path], tmp_path: Path) -> None:
    assert begin(muster, media).code == 0
    keys = [part for name in "abt" for part in ("--keys", media[name])]
    (tmp_path / "bad.pub").write_bytes(b"\xff")
    for file, word in ((tmp_path / "bad.pub", "holds no public key"), (tmp_path / "none.pub", "No such file")):
        done = muster("keys", "rotate", "builder", *keys, "--builder", file)
        assert (done.code, word in done.err) == (2, True), done.err
    assert muster("keys", "rotate", "builder", *keys).code == 2
    assert muster("keys", "rotate", "nobody", *keys).code == 2


def test_devices_take_a_restored_backup_once_the_online_keys_are_new(
    muster: Muster, media: dict[str, Path], served: Served, new_device: Callable[..., Device]
) -> None:
    assert begin(muster, media).code == 0
    device, backup = new_device(), served.versions()
    for number in (2, 3, 4):
        served.publish(number)
    device.must_find(entry(4).path)
    with served.database.begin() as connection:
        for role, version in backup.items():
            newer = (trust_metadata.c.role == role) & (trust_metadata.c.version > version)
            connection.execute(trust_metadata.delete().where(newer, trust_metadata.c.tenant == "acme"))
    with pytest.raises(BadVersionNumberError):
        device.find(PATH)
    keys = [part for name in "abt" for part in ("--keys", media[name])]
    for role in layout.ONLINE:
        assert muster("keys", "rotate", role, *keys).code == 0
    device.must_find(PATH)
    assert device.find(entry(4).path) is None


@pytest.mark.parametrize("forged", ["root", "targets"])
def test_what_a_stolen_controller_shows_is_not_signed(
    muster: Muster, media: dict[str, Path], served: Served, forged: str
) -> None:
    """It names keys of its own beside those that hold, and hopes that a renewal signs them along."""
    assert begin(muster, media).code == 0
    thieves = [CryptoSigner.generate_ed25519() for _ in range(3)]
    root = metadata.read(served.newest(layout.ROOT), Root).signed
    top = metadata.read(served.newest(layout.TARGETS), Targets).signed
    if forged == "root":
        for thief in thieves:
            root.add_key(thief.public_key, layout.ROOT)
        root.version += 1
        served.put(layout.ROOT, metadata.sign(root, thieves))
    else:
        assert top.delegations is not None
        top.delegations.keys |= {one.public_key.keyid: one.public_key for one in thieves}
        assert top.delegations.roles is not None
        for role in top.delegations.roles.values():
            role.keyids = [thieves[0].public_key.keyid]
        top.version += 1
        served.put(layout.TARGETS, metadata.sign(top, thieves))
    before = served.versions()
    done = muster("keys", "renew", *[part for name in "abt" for part in ("--keys", media[name])])
    assert (done.code, "are needed" in done.err) == (4, True), done.err
    assert served.versions() == before
    assert list(media["a"].glob("muster-ceremony-*")) == []


def test_trial_keys_that_a_crash_left_are_removed_at_the_next_look(
    muster: Muster, media: dict[str, Path], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = served.keeper.trial_directory("acme")
    assert served.keeper.keep("acme", time.time()) == []
    assert directory.exists(), "they still hold"
    with monkeypatch.context() as patch:
        patch.setattr(trial, "retire", lambda *_: False)
        assert begin(muster, media).code == 0
    assert directory.exists()
    assert served.keeper.keep("acme", time.time()) == []
    assert not directory.exists()


def test_older_delegations_are_not_signed_again(muster: Muster, media: dict[str, Path], served: Served) -> None:
    """They may name a builder that was revoked since."""
    assert begin(muster, media).code == 0
    keys = [part for name in "abt" for part in ("--keys", media[name])]
    assert muster("keys", "renew", *keys).code == 0
    with served.database.begin() as connection:
        newest = (trust_metadata.c.role == layout.TARGETS) & (trust_metadata.c.version == 3)
        connection.execute(trust_metadata.delete().where(newest))
    done = muster("keys", "renew", *keys)
    assert (done.code, "version 3 was signed before" in done.err) == (4, True), done.err
