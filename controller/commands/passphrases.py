"""Where the passphrases of key files come from: files that are named, or the terminal.

Invariant: never from an argument or a variable, which other processes can read; never written anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import typer

from controller.errors import InvalidError

MIN_PASSPHRASE: Final = 8


def passphrase_for_new(encrypt: bool, files: Sequence[Path] | None) -> bytes | None:
    """Return what new keys are encrypted with, None for not at all. Raises InvalidError."""
    if not encrypt:
        return None
    if files:
        return _checked(_first_line(files[0]), str(files[0]))
    _require_terminal()
    typed = typer.prompt("Passphrase for the new keys", hide_input=True, confirmation_prompt=True)
    return _checked(typed.encode(), "what was typed")


def passphrases_for_held(files: Sequence[Path] | None) -> Callable[[Path], list[bytes]]:
    """Return what gives the passphrases to try on an encrypted key file: those in ``files``, or what is typed."""

    def ask(key_file: Path) -> list[bytes]:
        if files:
            return [_first_line(file) for file in files]
        _require_terminal()
        return [typer.prompt(f"Passphrase of {key_file}", hide_input=True).encode()]

    return ask


def _require_terminal() -> None:
    if not sys.stdin.isatty():
        raise InvalidError(
            "a passphrase is needed and there is no terminal to ask at: give --passphrase-file", "no_passphrase"
        )


def _first_line(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(4096).split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        raise InvalidError(f"passphrase file {file}: {error.strerror}", "no_passphrase") from error


def _checked(passphrase: bytes, what: str) -> bytes:
    if len(passphrase) < MIN_PASSPHRASE:
        raise InvalidError(f"{what} has {len(passphrase)} bytes: a passphrase has {MIN_PASSPHRASE} at least", "short")
    return passphrase
