"""`muster-agent trust` as suites for TUF clients call it: options before the action, exit codes 0 and 1."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import trust_command
from agent.__main__ import main
from tests.agent.trust.signed_repository import SignedRepository

BODY = b"target file contents"


class Client:
    """The command, with a directory and an initial root."""

    def __init__(self, directory: Path, repository: SignedRepository) -> None:
        self.repository = repository
        self.metadata, self.targets = directory / "metadata", directory / "targets"
        self.root = directory / "initial_root.json"
        self.root.write_bytes(repository.first_root)
        self.metadata.mkdir()
        self.targets.mkdir()

    def init(self) -> int:
        return main(["trust", "--metadata-dir", str(self.metadata), "init", str(self.root)])

    def refresh(self) -> int:
        where = ["--metadata-url", self.repository.url + "/", "--metadata-dir", str(self.metadata)]
        return main(["trust", *where, "refresh"])

    def download(self, *names: str) -> int:
        where = ["--metadata-url", self.repository.url, "--metadata-dir", str(self.metadata)]
        wanted = [word for name in names for word in ("--target-name", name)]
        to = ["--target-dir", str(self.targets), "--target-base-url", self.repository.targets_url + "/"]
        return main(["trust", *where, *wanted, *to, "download"])

    def downloaded(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.targets.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def now() -> float:
    return float(int(time.time()))


@pytest.fixture
def client(tmp_path: Path, now: float, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr("agent.__main__._configure_log", lambda level: None)
    repository = SignedRepository(now)
    return Client(tmp_path, repository)


def test_init_asks_nobody_and_refresh_leaves_metadata_under_plain_names(client: Client) -> None:
    assert client.init() == 0
    assert client.repository.asked == []
    assert (client.metadata / "root.json").read_bytes() == client.repository.first_root
    assert client.refresh() == 0
    names = sorted(path.name for path in client.metadata.glob("*.json"))
    assert names == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    assert client.refresh() == 0


def test_targets_are_downloaded_verified_and_kept(client: Client) -> None:
    client.repository.add("targets", "path/to/a file.txt", BODY)
    client.repository.add("targets", "other", b"other")
    client.repository.release("targets")
    assert client.init() == 0
    assert client.download("path/to/a file.txt", "other") == 0
    assert client.downloaded() == {"path%2Fto%2Fa%20file.txt": BODY, "other": b"other"}
    client.repository.asked.clear()
    assert client.download("other") == 0
    assert client.repository.asked == ["2.root.json", "timestamp.json"]


def test_a_target_that_nobody_vouches_for_still_brings_the_metadata_up_to_date(client: Client) -> None:
    assert client.init() == 0
    assert client.download("nothing") == 1
    assert (client.metadata / "targets.json").exists()
    assert client.downloaded() == {}


@pytest.mark.parametrize("body", [b"malicious file conte", b"short", BODY + b"longer", b""])
def test_a_substituted_target_never_gets_in(client: Client, body: bytes) -> None:
    target = client.repository.add("targets", "x", BODY)
    client.repository.release("targets")
    client.repository.served[f"{target.hashes['sha256']}.x"] = body
    assert client.init() == 0
    assert client.download("x") == 1
    assert client.downloaded() == {}


@pytest.mark.parametrize("algorithms", [["sha256"], ["sha512"], ["sha256", "sha512"]])
def test_a_target_may_have_any_known_hashes(client: Client, algorithms: list[str]) -> None:
    from tuf.api.metadata import TargetFile

    target = TargetFile.from_data("x", BODY, algorithms)
    client.repository.targets("targets").targets["x"] = target
    client.repository.served[f"{target.hashes[algorithms[0]]}.x"] = BODY
    client.repository.release("targets")
    assert client.init() == 0
    assert client.download("x") == 0
    assert client.downloaded() == {"x": BODY}


@pytest.mark.parametrize("path", ["..", ".", "x" * 201])
def test_a_target_cannot_leave_its_directory(client: Client, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    client.repository.add("targets", path, BODY)
    client.repository.release("targets")
    assert client.init() == 0
    assert client.download(path) == 1
    assert "malformed" in capsys.readouterr().err
    assert not [asked for asked in client.repository.asked if not asked.endswith(".json")]


def test_a_bad_root_is_refused_and_nobody_is_asked(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    broken = json.loads(client.root.read_bytes())
    broken["signatures"][0]["sig"] = "00" * 64
    client.root.write_text(json.dumps(broken))
    assert client.init() == 1
    assert client.refresh() == 1
    assert client.repository.asked == []
    assert "bad_root" in capsys.readouterr().err


def test_another_root_for_the_same_directory_is_refused(client: Client, now: float) -> None:
    assert client.init() == 0
    assert client.init() == 0
    client.root.write_bytes(SignedRepository(now).first_root)
    assert client.init() == 1


def test_what_is_missing_on_the_command_line_is_named(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trust", "refresh", "--metadata-dir", str(client.metadata)]) == 2
    assert "--metadata-url" in capsys.readouterr().err
    assert main(["trust", "refresh"]) == 2
    assert client.init() == 0
    assert main(["trust", "--metadata-dir", str(client.metadata), "download"]) == 2
    assert "--target-name" in capsys.readouterr().err


def test_options_may_stand_after_the_action(client: Client) -> None:
    assert main(["trust", "init", str(client.root), "--metadata-dir", str(client.metadata)]) == 0
    assert (
        main(["trust", "refresh", "--metadata-dir", str(client.metadata), "--metadata-url", client.repository.url]) == 0
    )


@pytest.mark.parametrize(("clock", "status"), [(0.0, 0), (1_420_000_000.0, 0), (3_786_000_000.0, 1)])
def test_a_directory_without_a_floor_takes_any_clock_as_it_is(
    client: Client, clock: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client.repository.mds["timestamp"].signed.unrecognized_fields["issued"] = 0
    client.repository.publish("timestamp")
    assert client.init() == 0
    monkeypatch.setattr(trust_command, "time", SimpleNamespace(time=lambda: clock))
    assert client.refresh() == status
    assert ("expired" in capsys.readouterr().err) == bool(status)


def test_a_floor_that_a_refresh_left_is_told_and_judges_expiry(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.init() == 0
    assert client.refresh() == 0
    monkeypatch.setattr(trust_command, "time", SimpleNamespace(time=lambda: 0.0))
    assert client.refresh() == 0
    assert "1970-01-01" in capsys.readouterr().err
    client.repository.expire("snapshot")
    client.repository.release()
    assert client.refresh() == 1
    assert "expired" in capsys.readouterr().err
