"""The fleet CA is replaced: in every stage who was told in the one before is let in, and a cut leaves a whole stage."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.broker.configuration import Listener
from controller.broker.mosquitto import Mosquitto, find_program
from controller.devices import rotation
from controller.devices.authority import CONTROLLER_NAME, DEVICES, Authority
from controller.devices.revocation import BACKDATED, HOLDS
from controller.devices.rotation import Stage
from controller.errors import ConflictError, UnavailableError

ACCEPTED = b"\x20\x02\x00\x00"


@dataclass
class Device:
    name: str
    key: ec.EllipticCurvePrivateKey
    folder: Path
    serial: str = ""

    def renew(self, authority: Authority) -> None:
        """Take certificate and roots, as a renewal gives them."""
        issued = authority.issue_device(self.name, "default", self.key.public_key(), time.time())
        self.serial = issued.serial
        (self.folder / "certificate.pem").write_text(issued.pem + authority.chain_pem(DEVICES))
        self.learn(authority)

    def learn(self, authority: Authority) -> None:
        (self.folder / "roots.pem").write_text(authority.roots_pem)

    def connect(self, port: int) -> bytes | str:
        """Return the broker's first bytes after a CONNECT, or why its certificate was not believed."""
        context = ssl.create_default_context(cafile=str(self.folder / "roots.pem"))
        context.load_cert_chain(self.folder / "certificate.pem", self.folder / "key.pem")
        body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(self.name).to_bytes(2, "big") + self.name.encode()
        try:
            with (
                socket.create_connection(("127.0.0.1", port), 10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                secure.sendall(bytes([0x10, len(body)]) + body)
                return secure.recv(4)
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except (ssl.SSLError, ConnectionError):
            return b""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    now = time.time()
    Authority(tmp_path / "ca", now).write_list((), now - BACKDATED, now + HOLDS)
    return tmp_path / "ca"


def device(tmp_path: Path, authority: Authority) -> Device:
    name = authority.new_device_name()
    folder = tmp_path / name
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    made = Device(name, key, folder)
    made.renew(authority)
    return made


async def asked(tmp_path: Path, directory: Path, *devices: Device, revoked: tuple[str, ...] = ()) -> list[bytes | str]:
    """Start the broker as a controller that starts in this stage does, and let ``devices`` connect."""
    now = time.time()
    authority = Authority(directory, now)
    held = authority.held_list()
    serials = {*revoked, *(held.serials if held else ())}
    authority.write_list(serials, held.begins + 1 if held else now - BACKDATED, now + HOLDS)
    server = authority.server_files("mqtt", ["127.0.0.1"], now)
    listener = Listener(
        "127.0.0.1", 0, server.certificate, server.key,
        authority.client_roots, authority.list_file, authority.operating_root_file,
    )  # fmt: skip
    broker = Mosquitto(find_program(os.environ, tmp_path), tmp_path / "broker", listener, [CONTROLLER_NAME])
    await broker.start()
    try:
        return [await asyncio.to_thread(one.connect, broker.port) for one in devices]
    finally:
        await broker.stop()


async def test_no_connected_device_is_lost_from_the_first_step_to_the_last(tmp_path: Path, directory: Path) -> None:
    first = Authority(directory, time.time())
    steady, away, leaver = (device(tmp_path, first) for _ in range(3))
    operating = (directory / "operating.pem").read_bytes()
    assert await asked(tmp_path, directory, steady, away, leaver) == [ACCEPTED] * 3

    rotation.announce(directory, time.time())
    announced = Authority(directory, time.time())
    assert announced.root_pem == first.root_pem
    assert announced.roots_pem.count("BEGIN CERTIFICATE") == 2
    steady.learn(announced)
    leaver.learn(announced)
    assert await asked(tmp_path, directory, steady, away, leaver, revoked=(leaver.serial,)) == [ACCEPTED, ACCEPTED, b""]

    rotation.switch(directory)
    switched = Authority(directory, time.time())
    assert switched.root_pem != first.root_pem
    assert switched.root_pem in announced.roots_pem
    assert switched.roots_pem.count("BEGIN CERTIFICATE") == 2
    # with the certificate of the old one; who was away believes no server of the new one; who is revoked stays out
    answers = await asked(tmp_path, directory, steady, away, leaver)
    assert answers[0] == ACCEPTED
    assert answers[1] not in (ACCEPTED, b"")
    assert answers[2] == b""
    steady.renew(switched)
    newcomer = device(tmp_path, switched)
    assert await asked(tmp_path, directory, steady, newcomer) == [ACCEPTED] * 2

    rotation.finish(directory)
    last = Authority(directory, time.time())
    assert last.root_pem == switched.root_pem == last.roots_pem
    away.learn(last)
    assert await asked(tmp_path, directory, steady, newcomer, away) == [ACCEPTED, ACCEPTED, b""]
    assert (directory / "operating.pem").read_bytes() == operating
    assert first.root_pem not in "".join(p.read_text() for p in directory.rglob("*.pem"))


def test_steps_are_taken_in_order_and_a_wrong_one_changes_nothing(directory: Path, tmp_path: Path) -> None:
    now = time.time()
    for step in (rotation.switch, rotation.finish):
        with pytest.raises(ConflictError, match="settled"):
            step(directory)
    rotation.announce(directory, now)
    for wrong in (lambda: rotation.announce(directory, now), lambda: rotation.finish(directory)):
        with pytest.raises(ConflictError, match="announced"):
            wrong()
    rotation.switch(directory)
    for wrong in (lambda: rotation.announce(directory, now), lambda: rotation.switch(directory)):
        with pytest.raises(ConflictError, match="switched"):
            wrong()
    rotation.finish(directory)
    assert rotation.stage(directory) is Stage.SETTLED
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("ca") and p != directory]
    with pytest.raises(UnavailableError, match="no fleet CA"):
        rotation.announce(tmp_path / "elsewhere", now)


def test_keys_stay_private(directory: Path) -> None:
    rotation.announce(directory, time.time())
    rotation.switch(directory)
    Authority(directory, time.time())
    for file in directory.rglob("*.key"):
        assert file.stat().st_mode & 0o777 == 0o600, file


@pytest.mark.parametrize("step", ["announce", "switch", "finish"])
def test_a_cut_anywhere_leaves_a_whole_stage(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before: dict[str, list[Any]] = {"announce": [], "switch": ["announce"], "finish": ["announce", "switch"]}
    take: dict[str, Any] = {
        "announce": lambda: rotation.announce(directory, time.time()),
        "switch": lambda: rotation.switch(directory),
        "finish": lambda: rotation.finish(directory),
    }
    for name in before[step]:
        take[name]()
    old = rotation.stage(directory)
    roots = Authority(directory, time.time()).roots_pem
    stages = set()
    real_rename, real_copy, real_remove = Path.rename, shutil.copytree, shutil.rmtree
    for number in range(12):
        copy = tmp_path / "kept"
        real_copy(directory, copy)
        left = number

        def cut() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        def rename(self: Path, target: Any) -> Any:
            cut()
            return real_rename(self, target)

        def copytree(*arguments: Any, **options: Any) -> Any:
            cut()
            return real_copy(*arguments, **options)

        def rmtree(path: Any, **options: Any) -> None:
            cut()
            real_remove(path, **options)

        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr(shutil, "copytree", copytree)
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        try:
            take[step]()
            whole = True
        except KeyboardInterrupt:
            whole = False
        finally:
            monkeypatch.undo()
        rotation.recover(directory)
        stages.add(rotation.stage(directory))
        now = Authority(directory, time.time())  # never a CA made anew
        assert set(roots.split("-----END")) & set(now.roots_pem.split("-----END")) - {""}
        real_remove(directory)
        real_rename(copy, directory)
        if whole:
            break
    assert whole
    assert stages == {old, rotation.Stage({"announce": "announced", "switch": "switched", "finish": "settled"}[step])}


def test_the_command_says_what_comes_next(directory: Path) -> None:
    def muster(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "controller", "authority", *words, "--data", str(directory.parent)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert "announce" in muster("show").stderr + muster("show").stdout
    wrong = muster("switch")
    assert wrong.returncode != 0
    assert "muster authority announce" in wrong.stderr
    assert muster("announce").returncode == 0
    assert '"announced"' in muster("show", "--json").stdout
