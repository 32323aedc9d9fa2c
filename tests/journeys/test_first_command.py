"""What a newcomer does: `./deploy_edge.sh --local --once`, as an ordinary user with a clean HOME, twice."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.journeys.local_fleet import ANY_PORTS

pytestmark = pytest.mark.journey
ROOT = Path(__file__).parents[2]
KEPT = ("PIP_", "NPM_CONFIG_", "SSL_CERT", "REQUESTS_CA", "CURL_CA", "NODE_EXTRA_CA")


def newcomer(home: Path) -> tuple[list[str], dict[str, str]]:
    """An ordinary user's environment; when the tests run as root, one without root's rights."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(KEPT) or name.endswith("_proxy")}
    variables |= {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"} | ANY_PORTS
    variables["MUSTER_MOSQUITTO"] = os.environ.get("MUSTER_MOSQUITTO", "")
    if os.geteuid() != 0:
        return [], variables
    nobody = pwd.getpwnam("nobody")
    identity = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}"]
    return ["setpriv", *identity, "--clear-groups", "--no-new-privs"], variables


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean HOME with a copy of the project, where an ordinary user may read and write."""
    place = Path("/tmp") / f"muster-home-{os.getpid()}-{time.monotonic_ns()}"
    place.mkdir(mode=0o755)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, files):
        source, target = ROOT / name.decode(), place / "muster" / name.decode()
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for config in (".config/pip", ".pip"):
        if (Path.home() / config).is_dir():
            shutil.copytree(Path.home() / config, place / config)
    if (Path.home() / ".npmrc").is_file():
        shutil.copy(Path.home() / ".npmrc", place / ".npmrc")
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (place, *place.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.timeout(900)
def test_the_first_command_twice_in_a_clean_home(home: Path) -> None:
    prefix, variables = newcomer(home)
    command = [*prefix, "./deploy_edge.sh", "--local", "--once"]
    first = subprocess.run(
        command, cwd=home / "muster", env=variables, capture_output=True, text=True, timeout=800, check=False
    )
    assert first.returncode == 0, first.stderr[-4000:]
    assert "said" in first.stderr
    shown = re.search(r"the image shows (\d); \S+ said (\d)", first.stderr)
    assert shown is not None
    assert shown[1] == shown[2]
    assert "published" in first.stderr
    assert "for trial only" in first.stderr
    data = home / ".local/share/muster"
    assert data.is_dir()
    identity = (data / "devices/device-1/identity/certificate.pem").read_bytes()

    began = time.monotonic()
    second = subprocess.run(
        command, cwd=home / "muster", env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    took = time.monotonic() - began
    assert second.returncode == 0, second.stderr[-4000:]
    assert "training" not in second.stderr
    assert "enrolling" not in second.stderr
    assert (data / "devices/device-1/identity/certificate.pem").read_bytes() == identity
    assert took < 30, "benchmarks/first_journey.py measures it on an idle machine; here other tests run beside it"
    left = subprocess.run(["pgrep", "-f", str(data)], capture_output=True, text=True, check=False)
    assert left.stdout == "", "something was left running"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--local"),
        (["--local", "--devices", "none"], "'none'"),
        (["--local", "--devices", "0"], "'0'"),
        (["--local", "--devices"], "--devices"),
        (["--local", "--data"], "--data"),
        (["--lokal"], "--lokal"),
    ],
)
def test_a_mistyped_command_is_explained(arguments: list[str], word: str) -> None:
    done = subprocess.run(
        [str(ROOT / "deploy_edge.sh"), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert word in done.stderr
    assert "usage:" in done.stderr


def test_help_is_help() -> None:
    done = subprocess.run(
        [str(ROOT / "deploy_edge.sh"), "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert "--once" in done.stdout


def test_the_curl_line_works_as_pasted(tmp_path: Path) -> None:
    """The line is taken from the screen of a running `muster local` and given to a shell."""
    from tests.journeys.local_fleet import start

    screen: list[str] = []
    fleet = start(tmp_path / "data", 1, screen=screen)
    try:
        line = next(text for text in screen if text.startswith("curl "))
        answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
        assert '"model_name":"digits"' in answer.stdout.replace(" ", "")
        link = next(text.strip() for text in screen if "/login/" in text)
        with httpx.Client(follow_redirects=True) as browser:
            page = browser.get(link).raise_for_status()
            assert page.url.path == "/"
            assert "<title>Muster</title>" in page.text
            shown = browser.get(page.url.copy_with(path="/api/v1/overview")).raise_for_status().json()
        assert shown["devices"] == {"online": 1, "late": 0, "lost": 0, "total": 1}
        assert [run["component"] for run in shown["runs"]] == ["model:digits"]
    finally:
        assert fleet.stop() == 0
