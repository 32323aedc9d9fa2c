"""Secrets of a real fleet: none in a log, a process list, an error or a database; files that hold one are private.

Everything is planted through the flows that people and devices take, with logs at their most talkative.
"""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.identity.credentials import Credentials
from agent.identity.enrol import load_identity
from controller.tenants.guard import SESSION_COOKIE
from tests.journeys.local_fleet import LocalFleet, start, tls

pytestmark = pytest.mark.journey
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def screen() -> list[str]:
    return []


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory, screen: list[str]) -> Iterator[LocalFleet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSTER_LOG_LEVEL", "debug")
        fleet = start(tmp_path_factory.mktemp("talkative"), 1, screen=screen)
    yield fleet
    assert fleet.stop() == 0


def enrol(fleet: LocalFleet, data: Path, token: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "agent", "enrol", "--data", str(data)),
            *("--controller", fleet.login.api_url, "--token-file", "-"),
        ],
        input=token + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"MUSTER_LOG_LEVEL": "debug"},
    )


def spoiled(secret: str) -> str:
    return secret[:-4] + ("AAAA" if secret[-4:] != "AAAA" else "BBBB")


def private_keys(data: Path) -> dict[str, str]:
    """Return the inner lines of all private keys below ``data``, by file."""
    found: dict[str, str] = {}
    for file in data.rglob("*"):
        if file.is_file() and file.stat().st_size < 100_000 and b"PRIVATE KEY-----" in (text := file.read_bytes()):
            found[str(file)] = text.decode().split("-----")[2].split()[0]
    return found


def planted(fleet: LocalFleet, tmp_path: Path) -> tuple[dict[str, str], list[httpx.Response], list[str]]:
    """Take every flow with a secret in it, rightly and wrongly; return the secrets, the refusals and what was said."""
    secrets: dict[str, str] = {"first admin": fleet.login.token.split(".")[2]}
    refused: list[httpx.Response] = []
    said: list[str] = []
    controller = fleet.data / "controller"
    secrets["builder"] = next(controller.rglob("builder/token")).read_text().strip().split(".")[2]
    login = fleet.login
    with fleet.api() as api, httpx.Client(base_url=login.api_url, verify=tls(login.ca_file), timeout=20) as stranger:
        made = api.post("/api/v1/tokens", json={"name": "planted", "role": "operator"}).json()
        token = made["token"]
        secrets["API token"] = token.split(".")[2]
        bearer = {"Authorization": f"Bearer {token}"}
        assert stranger.get("/api/v1/whoami", headers=bearer).status_code == 200
        refused.append(stranger.get("/api/v1/whoami", headers={"Authorization": f"Bearer {spoiled(token)}"}))
        refused.append(stranger.get("/api/v1/whoami", headers={"Authorization": f"Basic {token}"}))
        refused.append(stranger.post("/api/v1/sessions", json={"token": spoiled(token)}, headers=OWN_PAGE))
        refused.append(stranger.post("/api/v1/sessions", json={"token": token, "more": 1}, headers=OWN_PAGE))
        refused.append(stranger.post("/api/v1/sessions", json={"token": token}))
        entered = stranger.post("/api/v1/sessions", json={"token": token}, headers=OWN_PAGE)
        secrets["session"] = entered.cookies[SESSION_COOKIE]
        refused.append(stranger.post("/api/v1/join-tokens", json={}))  # the cookie alone, from another site
        stranger.cookies.clear()
        link = api.post("/api/v1/login-links").json()["path"]
        secrets["login code"] = link.rpartition("/")[2]
        assert stranger.get(link).status_code == 303
        refused.append(stranger.get(link))
        stranger.cookies.clear()
        access = stranger.post("/api/v1/access-tokens", headers=bearer).json()["access_token"]
        secrets["access token"] = access.rpartition(".")[2]
        assert stranger.get("/api/v1/whoami", headers={"Authorization": f"Bearer {access}"}).status_code == 200
        refused.append(stranger.get("/api/v1/whoami", headers={"Authorization": f"Bearer {spoiled(access)}"}))
        joining = api.post("/api/v1/join-tokens", json={}).json()["token"]
        secrets["join token"] = joining.split(".")[3]
        for number in range(2):  # the second time it is refused: its use is spent
            done = enrol(fleet, tmp_path / f"device-{number}", joining)
            said += [done.stdout, done.stderr]
            assert (done.returncode == 0) == (number == 0), done.stderr
        session = asyncio.run(device_session(fleet, tmp_path / "device-0"))
        secrets["device session"] = session.rpartition(".")[2]
        refused.append(stranger.get("/api/v1/devices", headers={"Authorization": f"Bearer {session}"}))
        refused.append(stranger.get("/api/v1/devices", headers={"Authorization": f"Bearer {spoiled(session)}"}))
        api.delete(f"/api/v1/tokens/{made['id']}").raise_for_status()
        refused.append(stranger.get("/api/v1/whoami", headers=bearer))
    secrets |= private_keys(fleet.data) | private_keys(tmp_path)
    assert all(answer.status_code in (400, 401, 403) for answer in refused), [answer.text for answer in refused]
    return secrets, refused, said


async def device_session(fleet: LocalFleet, data: Path) -> str:
    identity = load_identity(data)
    assert identity is not None
    return await Credentials(identity).session_token()


def test_no_secret_is_where_others_read(talkative: LocalFleet, screen: list[str], tmp_path: Path) -> None:
    secrets, refused, said = planted(talkative, tmp_path)
    assert len(secrets) >= 15, sorted(secrets)
    places: dict[str, bytes] = {f"answer {answer.request.url.path}": answer.content for answer in refused}
    places |= {f"said {number}": words.encode() for number, words in enumerate(said)}
    places["screen"] = "".join(screen).encode()
    for process in talkative.processes():
        places[f"process {process.pid} {process.name()}"] = b"\0".join(os.fsencode(word) for word in process.cmdline())
    assert sum(place.startswith("process") for place in places) >= 5
    for file in talkative.data.rglob("*"):
        if file.is_file() and (file.suffix in (".log", ".jsonl") or ".db" in file.name or file.suffix == ".heads"):
            places[str(file)] = file.read_bytes()
    assert sum(place.endswith(".log") for place in places) >= 4
    assert any(place.endswith("state.db") for place in places)
    found = [
        f"{name} in {place}"
        for place, words in places.items()
        for name, secret in secrets.items()
        if secret.encode() in words
    ]
    assert not found, "\n".join(found)


def test_files_with_secrets_are_their_owners_alone(talkative: LocalFleet, tmp_path: Path) -> None:
    secrets, _, _ = planted(talkative, tmp_path)
    holding: list[tuple[str, int]] = []
    for root in (talkative.data, tmp_path):
        for file in root.rglob("*"):
            if file.is_file() and file.stat().st_size < 4 * 2**20:
                words = file.read_bytes()
                if any(secret.encode() in words for secret in secrets.values()):
                    holding.append((str(file), stat.S_IMODE(file.stat().st_mode)))
    assert len(holding) >= 10, holding
    assert [held for held in holding if held[1] & 0o077] == []
