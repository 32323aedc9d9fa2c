"""The command muster-agent: run, enrol, profile, status, serve, trust.

Invariant: data goes to standard output, everything else to standard error; the exit code says whose turn it is
(`errors.py`). A join token is read from a file or from standard input, never from the command line, which every user
of a machine can read. Imports what a command needs, and nothing more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from agent import trust_command
from agent.errors import AgentError, DeviceError, UsageError
from agent.settings import Settings, read_settings

_MAX_TOKEN: Final = 4096
_INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace, Settings], int] = arguments.function
    try:
        settings = read_settings(arguments.settings, os.environ)
        if arguments.data is not None:
            from msgspec.structs import replace

            settings = replace(settings, data=str(arguments.data))
        return command(arguments, settings)
    except AgentError as error:
        print(f"muster-agent: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    _configure_log(settings.log_level)
    from agent import app

    join = None
    if (arguments.controller is None) != (arguments.token_file is None):
        raise UsageError("--controller and --token-file belong together", "bad_arguments")
    if arguments.controller is not None:
        token_file, url, name = arguments.token_file, arguments.controller, _name(arguments)
        token = "" if _has_identity(settings) else _read_token(token_file)

        def join() -> Any:
            return app.enrol_here(settings, token, url, name)

    asyncio.run(app.run(settings, join))
    return 0


def _enrol(arguments: argparse.Namespace, settings: Settings) -> int:
    _configure_log(settings.log_level)
    from agent import app

    identity = app.enrol_here(settings, _read_token(arguments.token_file), arguments.controller, _name(arguments))
    print(identity.device)
    return 0


def _profile(arguments: argparse.Namespace, settings: Settings) -> int:
    from agent.hardware.description import describe

    root: Path = arguments.root
    if not root.is_dir():
        raise UsageError(f"--root {root}: there is no such directory", "bad_arguments")
    data = settings.data_directory
    found = describe(root, data if data.is_dir() else None)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['profile']}  {found['title']}  (confidence {found['confidence']:.2f})")
    for line in found["evidence"]:
        print(f"  - {line}")
    for runtime in found["runtimes"]:
        name = f"{runtime['name']} {runtime['version'] or ''}".strip()
        print(f"  {name}: {'usable' if runtime['usable'] else '; '.join(runtime['reasons'])}")
    memory = found["budgets"]["model_memory_bytes"]
    print(f"  memory for models: {'unknown' if memory is None else f'{memory // 1024**2} MiB'}")
    return 0


def _status(arguments: argparse.Namespace, settings: Settings) -> int:
    """Tell what runs here: "stopped", "starting", "down" (serving is), "offline" (serves without a link) or "ready"."""
    from agent.status import collect, lines

    status = asyncio.run(collect(settings.data_directory))
    running: bool = status["running"]
    if arguments.json:
        print(json.dumps(status, indent=2))
    else:
        for line in lines(status):
            print(line)
    return 0 if running else DeviceError.exit_code


def _serve(arguments: argparse.Namespace, _settings: Settings) -> int:
    """Become the serving process: it needs neither an identity nor an agent."""
    command = [sys.executable, "-m", "agent.serving", "--models", str(arguments.models.absolute())]
    command += ["--host", arguments.host, "--port", str(arguments.port)]
    os.execv(sys.executable, command)  # noqa: S606  the point is that no shell and no second process is there


def _has_identity(settings: Settings) -> bool:
    from agent.identity.enrol import load_identity

    return load_identity(settings.data_directory) is not None


def _read_token(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.read(_MAX_TOKEN)
        with Path(file).open() as opened:
            return opened.read(_MAX_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"token file {file}: {error}", "no_token") from error


def _name(arguments: argparse.Namespace) -> str:
    return str(arguments.name if arguments.name is not None else os.uname().nodename)[:63]


def _configure_log(level: str) -> None:
    import logging

    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, metavar="DIR", help="where identity, builds and state live")
    common.add_argument("--settings", type=Path, metavar="FILE", help="settings in TOML")
    parser = argparse.ArgumentParser(
        prog="muster-agent", description="Run models on this device, for a fleet.", allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", parents=[common], allow_abbrev=False, help="run the agent")
    run.add_argument("--controller", metavar="URL", help="enrol first when this device has not joined a fleet")
    run.add_argument("--token-file", metavar="FILE", help='file with the join token, "-" for standard input')
    run.add_argument("--name", help="the device's name in the fleet (this machine's)")
    run.set_defaults(function=_run)

    enrol = commands.add_parser("enrol", parents=[common], allow_abbrev=False, help="join a fleet with a join token")
    enrol.add_argument("--controller", metavar="URL", required=True, help="https://HOST:7070")
    enrol.add_argument(
        "--token-file", metavar="FILE", required=True, help='file with the join token, "-" for standard input'
    )
    enrol.add_argument("--name", help="the device's name in the fleet (this machine's)")
    enrol.set_defaults(function=_enrol)

    profile = commands.add_parser("profile", parents=[common], allow_abbrev=False, help="what this machine is, and why")
    profile.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="look at a copy of a machine")
    profile.add_argument("--json", action="store_true", help="for programs")
    profile.set_defaults(function=_profile)

    status = commands.add_parser(
        "status", parents=[common], allow_abbrev=False, help="what the agent on this machine does"
    )
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(function=_status)

    serve = commands.add_parser(
        "serve", parents=[common], allow_abbrev=False, help="serve models from a directory, without a fleet"
    )
    serve.add_argument("--models", type=Path, required=True, metavar="DIR", help="NAME/VERSION/model.onnx")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any free one (8000)")
    serve.set_defaults(function=_serve)

    trust_command.add_parser(commands, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
