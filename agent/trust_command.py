"""`muster-agent trust`: the client of the signed repository at the command line, as the agent runs it.

Its options and exit codes (0 or 1) are those that suites for TUF clients expect. The directory holds all there is:
`init` puts the root in that is believed from then on. A time floor applies where an earlier refresh found one there;
the release of this program is none, for the repository may be older.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final

from agent.errors import AgentError, TrustError, UsageError

_BOOTSTRAP: Final = "bootstrap"
_MAX_ROOT: Final = 512_000
_SECONDS: Final = 60.0


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command. Its options may stand before or after init, refresh and download."""
    trust = commands.add_parser(
        "trust", parents=[common, _options(None)], allow_abbrev=False, help="what a signed repository vouches for"
    )
    actions = trust.add_subparsers(metavar="ACTION", required=True, dest="action")
    options = _options(argparse.SUPPRESS)
    init = actions.add_parser("init", parents=[options], allow_abbrev=False, help="believe this root from now on")
    init.add_argument("root", type=Path, metavar="ROOT", help="file with root metadata")
    actions.add_parser("refresh", parents=[options], allow_abbrev=False, help="bring the metadata up to date")
    actions.add_parser("download", parents=[options], allow_abbrev=False, help="fetch targets, verified")
    trust.set_defaults(function=run)


def run(arguments: argparse.Namespace, _settings: object) -> int:
    """Do what was asked and return the exit code: 1 for whatever did not end well."""
    directory: Path | None = arguments.metadata_dir
    if directory is None:
        raise UsageError("trust needs --metadata-dir DIR", "bad_arguments")
    try:
        if arguments.action == "init":
            _init(directory, arguments.root)
        elif arguments.action == "refresh":
            _refresh(directory, arguments, [])
        else:
            _download(directory, arguments)
    except UsageError:
        raise
    except AgentError as error:
        print(f"muster-agent: {error.code}: {error}", file=sys.stderr)
        return 1
    return 0


def _init(directory: Path, root: Path) -> None:
    from agent import durable
    from agent.trust.updater import begin

    given = _read(root, "root file")
    kept = directory / _BOOTSTRAP
    if kept.exists() and kept.read_bytes() != given:
        raise TrustError(f"{directory} believes another root already; choose an empty directory", "bad_root")
    failure = begin(directory, given)
    if failure is not None:
        raise TrustError(failure.message, failure.code)
    durable.write_atomic(kept, given, "trust.bootstrap")


def _refresh(directory: Path, arguments: argparse.Namespace, paths: list[str]) -> Any:
    from agent.trust.protocol import Failure, Request
    from agent.trust.updater import answer

    if arguments.metadata_url is None:
        raise UsageError("it takes --metadata-url URL", "bad_arguments")
    if not (directory / _BOOTSTRAP).is_file():
        raise TrustError(f"{directory} believes no root yet: muster-agent trust init ROOT", "bad_root")
    request = Request(
        directory=str(directory),
        url=arguments.metadata_url,
        root=_read(directory / _BOOTSTRAP, "root"),
        ca_file=None if arguments.ca is None else str(arguments.ca),
        deadline=_SECONDS,
        paths=paths,
    )
    told = answer(request, time.time())
    if isinstance(told, Failure):
        raise TrustError(told.message, told.code)
    if told.clock.suspect:
        print(f"muster-agent: {told.clock.reason}", file=sys.stderr)
    return told


def _download(directory: Path, arguments: argparse.Namespace) -> None:
    from agent.builds.published import download

    if not arguments.target_name or arguments.target_base_url is None or arguments.target_dir is None:
        raise UsageError("it takes --target-name PATH, --target-base-url URL and --target-dir DIR", "bad_arguments")
    told = _refresh(directory, arguments, arguments.target_name)
    missing = [path for path, target in told.found.items() if target is None]
    for target in told.found.values():
        if target is not None:
            file = asyncio.run(
                download(target, arguments.target_base_url, arguments.ca, arguments.target_dir, seconds=_SECONDS)
            )
            print(file)
    if missing:
        raise TrustError(f"the repository vouches for no {', '.join(map(repr, missing))}", "not_found")


def _read(file: Path, what: str) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_MAX_ROOT)
    except OSError as error:
        raise TrustError(f"{what} {file}: {error.strerror or error}", "bad_root") from error


def _options(default: Any) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, argument_default=default)
    options.add_argument("--metadata-dir", type=Path, metavar="DIR", help="where trusted metadata is kept")
    options.add_argument("--metadata-url", metavar="URL", help="where the repository's metadata is")
    options.add_argument("--ca", type=Path, metavar="FILE", help="the only CA to believe (the system's)")
    options.add_argument("--target-name", action="append", metavar="PATH", help="a target; may be given again")
    options.add_argument("--target-base-url", metavar="URL", help="where the targets are")
    options.add_argument("--target-dir", type=Path, metavar="DIR", help="where to put them")
    return options
