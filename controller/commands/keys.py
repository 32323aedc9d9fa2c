"""`muster keys`: the ceremonies with the keys that are kept off every machine (docs/guide/keys.md).

Invariant: private keys are made and used here and go nowhere but into the directories that the operator names; the
controller is sent signed documents. Whatever is wrong is told before anything is sent, and then nothing is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from controller.commands import ceremonies
from controller.commands.client import Api, read_login
from controller.commands.options import AsJson
from controller.commands.output import say, show_done, show_json, show_table, when
from controller.commands.passphrases import passphrase_for_new, passphrases_for_held
from controller.errors import ConflictError, InvalidError
from controller.trust import ceremony, layout
from controller.trust.ceremony import BUILDER, SHORT, Current, Wanted
from controller.trust.offline_keys import NewKeys, check_directories, public_key_in, signers_in
from device_profiles import load as load_profiles

SOON_DAYS: Final = 30
ROLES: Final = (layout.ROOT, layout.TARGETS, *layout.ONLINE, BUILDER)

app = typer.Typer(no_args_is_help=True, help="The keys that vouch for what devices install.")

Held = Annotated[
    list[Path], typer.Option("--keys", help="A directory with keys that hold now. Name as many as must sign.")
]
New = Annotated[list[Path] | None, typer.Option("--new", help="A directory for a new key; once for each new key.")]
PassphraseFiles = Annotated[
    list[Path] | None,
    typer.Option("--passphrase-file", help="A file whose first line opens encrypted keys; all given ones are tried."),
]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt new keys: with the first passphrase file, or one that is asked for.")
]
Reason = Annotated[str, typer.Option("--reason", help="Written into the audit trail.")]


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show roles, when they expire, whose keys hold, and what somebody must do soon."""
    stands = ceremonies.standing(Api(read_login()))
    found, now = stands.status, time.time()
    if as_json:
        show_json(found | {"tenant": stands.tenant})
        return
    show_table(
        found["roles"],
        [
            ("role", "role"),
            ("version", "version"),
            ("expires", lambda row: when(row["expires"])),
            ("signed by", lambda row: _by(row["role"], found["trial"])),
        ],
        False,
        "there is no signed repository yet",
    )
    show_table(
        found["keys"],
        [("key", lambda row: row["keyid"][:SHORT]), ("of role", "role"), ("must sign", "threshold")],
        False,
        "",
    )
    for sentence in _to_do(found, now):
        say(sentence)


@app.command()
def init(
    root: Annotated[list[Path], typer.Option("--root", help="A directory for a root key: three, on three media.")],
    targets: Annotated[Path, typer.Option("--targets", help="A directory for the targets key.")],
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFiles = None,
    reason: Reason = "offline keys",
    as_json: AsJson = False,
) -> None:
    """Make offline keys and have them take the place of the controller's trial keys, which are then removed."""
    if len(root) != layout.ROOT_KEYS:
        raise InvalidError(f"name {layout.ROOT_KEYS} directories with --root, not {len(root)}", "bad_number")
    check_directories(root)
    keep = _distinct([*root, targets])
    check_directories(keep)
    api = Api(read_login())
    stands = ceremonies.standing(api)
    if not stands.status["trial"]:
        raise ConflictError(
            "offline keys hold already: `muster keys rotate` changes them, `muster keys status` shows them", "exists"
        )
    now = ceremonies.current(api, stands, keep)
    new = NewKeys(passphrase_for_new(encrypt, passphrase_file))
    try:
        roots = [new.make(layout.ROOT, directory) for directory in root]
        signers = {one.signer.public_key.keyid: one.signer for one in (*roots, new.make(layout.TARGETS, targets))}
        wanted = _with(
            ceremony.wanted_now(now),
            roots=[one.signer.public_key for one in roots],
            targets=new.made[-1].signer.public_key,
        )
        signed = ceremony.sign(now, wanted, signers, load_profiles(), time.time())
    except BaseException:
        new.remove()
        raise
    for key in wanted.builders:
        say(f"builds are vouched for by the builder's key {key.keyid[:SHORT]}")
    answer = ceremonies.send(api, stands, signed, new, keep, reason)
    _tell(answer, new, as_json)
    if len({directory.stat().st_dev for directory in root}) < len(root):
        say("these directories lie on one disk: move the keys to three media that are kept in different places")


@app.command()
def renew(
    keys: Held,
    passphrase_file: PassphraseFiles = None,
    reason: Reason = "renewed",
    as_json: AsJson = False,
) -> None:
    """Sign root and targets again with the keys that hold, for another year and another 90 days."""
    _hold(keys, lambda current, _: ceremony.wanted_now(current), (), False, passphrase_file, reason, as_json)


@app.command()
def rotate(
    role: Annotated[str, typer.Argument(help=" or ".join(ROLES))],
    keys: Held,
    new: New = None,
    replace: Annotated[
        list[str] | None, typer.Option("--replace", help="The root key that goes; all, when left out.")
    ] = None,
    builder: Annotated[
        list[Path] | None,
        typer.Option("--builder", help="A file with the public key of a builder that shall vouch."),
    ] = None,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFiles = None,
    reason: Reason = "rotated",
    as_json: AsJson = False,
) -> None:
    """Put new keys in the place of those that hold. Devices follow by themselves."""
    if role not in ROLES:
        raise InvalidError(f"{role!r} is no role whose keys are rotated: {', '.join(ROLES)} are", "bad_role")
    if bool(builder) != (role == BUILDER):
        raise InvalidError("name the builders that shall vouch with --builder, for the role builder only", "bad_role")
    there = new or []
    builders = [public_key_in(file) for file in builder or []]

    def change(current: Current, made: NewKeys) -> Wanted:
        if role == BUILDER:
            return _with(ceremony.wanted_now(current), builders=builders)
        if role in layout.ONLINE:
            return _with(ceremony.wanted_now(current), **{role: ceremonies.new_online_key(Api(read_login()), role)})
        going = [_of_role(current, beginning, role) for beginning in replace or current.keyids(role)]
        if len(there) != len(going):
            raise InvalidError(
                f"{len(going)} {role} keys go: name {len(going)} directories with --new, not {len(there)}", "bad_number"
            )
        return _exchange(current, role, going, there, made)

    _hold(keys, change, there, encrypt, passphrase_file, reason, as_json)


@app.command()
def revoke(
    keyid: Annotated[str, typer.Argument(help="The key that was lost or stolen: the beginning of its id.")],
    keys: Held,
    new: New = None,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFiles = None,
    reason: Reason = "revoked",
    as_json: AsJson = False,
) -> None:
    """Take a key away that was lost or stolen, and put a new one in its place where --new says so.

    For snapshot and timestamp the controller makes the new one itself.
    """
    there = new or []

    def change(current: Current, made: NewKeys) -> Wanted:
        role, full = ceremony.role_of(current, keyid)
        now = ceremony.wanted_now(current)
        if role in layout.ONLINE:
            return _with(now, **{role: ceremonies.new_online_key(Api(read_login()), role)})
        if role == BUILDER:
            return _with(now, builders=[key for key in now.builders if key.keyid != full])
        if len(there) > 1 or (role == layout.TARGETS and not there):
            raise InvalidError(f"one {role} key goes: name one directory with --new", "bad_number")
        return _exchange(current, role, [full], there, made)

    _hold(keys, change, there, encrypt, passphrase_file, reason, as_json)


@app.command()
def finish(
    file: Annotated[Path, typer.Argument(help="The file that the ceremony told.")], as_json: AsJson = False
) -> None:
    """Bring a ceremony to its end whose answer got lost."""
    again = ceremonies.finish(Api(read_login()), file)
    text = "sent again, and taken" if again else "it had been taken"
    show_done({"sent_again": again}, as_json, f"{text}: the ceremony is over")


def _hold(
    keys: Sequence[Path],
    change: Callable[[Current, NewKeys], Wanted],
    new_directories: Sequence[Path],
    encrypt: bool,
    passphrase_files: Sequence[Path] | None,
    reason: str,
    as_json: bool,
) -> None:
    """One ceremony with keys that hold: find them, change what ``change`` says, sign, send."""
    check_directories(new_directories)
    keep = _distinct([*keys, *new_directories])
    check_directories(keep)
    api = Api(read_login())
    stands = ceremonies.standing(api)
    if stands.status["trial"]:
        raise ConflictError("this repository still goes by trial keys: `muster keys init` makes offline ones", "trial")
    current = ceremonies.current(api, stands, keep)
    for sentence in ceremony.concerns(current, time.time()):
        say(sentence)
    known = [*current.keyids(layout.ROOT), *current.keyids(layout.TARGETS)]
    signers = signers_in(keys, known, passphrases_for_held(passphrase_files))
    new = NewKeys(passphrase_for_new(encrypt, passphrase_files))
    try:
        wanted = change(current, new)
        signers |= {one.signer.public_key.keyid: one.signer for one in new.made}
        signed = ceremony.sign(current, wanted, signers, load_profiles(), time.time())
    except BaseException:
        new.remove()
        raise
    _tell(ceremonies.send(api, stands, signed, new, keep, reason), new, as_json)


def _exchange(current: Current, role: str, going: Sequence[str], directories: Sequence[Path], made: NewKeys) -> Wanted:
    now = ceremony.wanted_now(current)
    fresh = [made.make(role, directory).signer.public_key for directory in directories]
    if role == layout.TARGETS:
        return _with(now, targets=fresh[0])
    return _with(now, roots=[*(key for key in now.roots if key.keyid not in going), *fresh])


def _with(wanted: Wanted, **changed: Any) -> Wanted:
    fields = {name: getattr(wanted, name) for name in ("roots", "targets", "snapshot", "timestamp", "builders")}
    return Wanted(**(fields | changed))


def _of_role(current: Current, beginning: str, role: str) -> str:
    found, full = ceremony.role_of(current, beginning)
    if found != role:
        raise InvalidError(f"{full[:SHORT]} is a key of {found}, not of {role}", "bad_role")
    return full


def _distinct(directories: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(directory.absolute() for directory in directories))


def _tell(answer: dict[str, Any], new: NewKeys, as_json: bool) -> None:
    files = [str(one.file) for one in new.made]
    show_done(
        answer | {"made": files},
        as_json,
        "taken: " + ", ".join(f"{role} version {version}" for role, version in answer["versions"].items()),
    )
    if as_json:
        return
    for file in files:
        say(f"new key: {file}")
    if answer.get("trial_keys_removed"):
        say("the controller's trial keys are removed: from now on nothing is vouched for without these keys")


def _by(role: str, trial: bool) -> str:
    if role in layout.ONLINE:
        return "the controller"
    if role not in layout.TOP:
        return "the builder"
    return "the controller, with keys for trial only" if trial else "people, with keys kept offline"


def _to_do(found: dict[str, Any], now: float) -> list[str]:
    said = []
    if found["trial"]:
        said.append(
            "All keys lie on the controller: right for a trial, not for a fleet. `muster keys init` moves them away"
        )
    for row in found["roles"]:
        left = (row["expires"] - now) / layout.DAY
        if row["role"] in (layout.ROOT, layout.TARGETS) and not found["trial"] and left < SOON_DAYS:
            ends = f"expires in {left:.0f} days" if left > 0 else "has expired: devices install nothing"
            said.append(f"{row['role']} {ends}; `muster keys renew` signs it again")
    return said
