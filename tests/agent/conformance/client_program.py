"""A client of signed repositories as a program: what it is told on its command line, and what it leaves on disk.

The program is `muster-agent trust` of this checkout, or the command in the environment variable MUSTER_TUF_CLIENT, so
that other clients can be compared. Its exit code is all that is asked of it: 0 for done, 1 for refused.
"""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from tuf.api.metadata import Metadata

from tests.agent.trust.signed_repository import SignedRepository

DONE: Final = 0
REFUSED: Final = 1
CHECKOUT: Final = Path(__file__).parents[3]
LIMIT_SECONDS: Final = 60.0


class ClientProgram:
    """One device: ``metadata`` is what it trusts, ``artifacts`` is where its downloads lie.

    ``at``, where a method takes it, is what the client's clock shows at its start, in seconds since 1970.
    """

    def __init__(self, directory: Path, repository: SignedRepository) -> None:
        given = os.environ.get("MUSTER_TUF_CLIENT")
        self.command = shlex.split(given) if given else [sys.executable, "-m", "agent", "trust"]
        self.repository = repository
        self.directory = directory
        self.metadata = directory / "metadata"
        self.artifacts = directory / "targets"
        self.metadata.mkdir()
        self.artifacts.mkdir()

    def init(self, root: bytes | None = None) -> int:
        """Make it believe ``root``, else the repository's first."""
        file = self.directory / "initial_root.json"
        file.write_bytes(self.repository.served["1.root.json"] if root is None else root)
        return self._run(["--metadata-dir", str(self.metadata), "init", str(file)])

    def refresh(self, at: float | None = None) -> int:
        """Bring its metadata up to date."""
        return self._run([*self._where(), "refresh"], at)

    def download(self, path: str, at: float | None = None) -> int:
        """Fetch one target."""
        place = ["--target-dir", str(self.artifacts), "--target-base-url", f"{self.repository.targets_url}/"]
        return self._run([*self._where(), "--target-name", path, *place, "download"], at)

    def trusts(self, role: str) -> bytes:
        """Return the metadata of ``role`` as it lies on its disk."""
        return (self.metadata / f"{role}.json").read_bytes()

    def versions(self) -> dict[str, int]:
        """Return the version of each role that it trusts."""
        files = self.metadata.glob("*.json")
        return {file.stem: Metadata.from_file(str(file)).signed.version for file in files}

    def downloaded(self) -> list[bytes]:
        """Return the contents of all downloads, sorted. Hidden files are the client's own business."""
        files = (file for file in self.artifacts.rglob("[!.]*") if file.is_file())
        return sorted(file.read_bytes() for file in files)

    def _where(self) -> list[str]:
        return ["--metadata-url", f"{self.repository.url}/", "--metadata-dir", str(self.metadata)]

    def _run(self, arguments: list[str], at: float | None = None) -> int:
        command = [*self.command, *arguments]
        if at is not None:
            if shutil.which("faketime") is None:
                pytest.fail("install faketime: apt-get install faketime", pytrace=False)
            command = ["faketime", str(datetime.datetime.fromtimestamp(at, datetime.UTC)), *command]
        return subprocess.run(command, cwd=CHECKOUT, timeout=LIMIT_SECONDS, check=False).returncode
