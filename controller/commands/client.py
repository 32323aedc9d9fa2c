"""The HTTP API as the command line sees it: who to ask, with which token, and what a refusal means.

Invariant: every failure becomes one of the errors in `controller/errors.py` with the server's own words, so that the
exit code tells what happened. Never prints. A login, which holds a token, is written for its owner alone.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from controller.audit.reason import HEADER
from controller.errors import (
    ConflictError,
    ControllerError,
    DeniedError,
    InvalidError,
    NotFoundError,
    TooLargeError,
    TooManyError,
    UnauthenticatedError,
    UnavailableError,
)
from controller.installation import write_private_bytes

TIMEOUT: Final = 30.0
STORED_SECONDS: Final = 300.0  # until a slow disk has taken an upload
_ERRORS: Final[dict[int, type[ControllerError]]] = {
    kind.status: kind
    for kind in (
        InvalidError,
        UnauthenticatedError,
        DeniedError,
        NotFoundError,
        ConflictError,
        TooLargeError,
        TooManyError,
        UnavailableError,
    )
}


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """Where a controller is and how to be known there. Kept in a file that only its owner can read."""

    api_url: str
    gateway_url: str
    console_url: str
    ca_file: str
    token: str

    def __repr__(self) -> str:  # a secret must not end up in a log
        return f"Login(api_url={self.api_url!r})"


def login_file() -> Path:
    """Return where the login of this user lies: MUSTER_LOGIN, or in the user's data directory."""
    if chosen := os.environ.get("MUSTER_LOGIN"):
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "muster" / "login.json"


def read_login(file: Path | None = None) -> Login:
    """Return the login in ``file``. Raises UnauthenticatedError or InvalidError with what to do."""
    file = file or login_file()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Login)
    except FileNotFoundError as error:
        raise UnauthenticatedError(
            f"there is no login at {file}: start a controller here (`muster local`, `muster up`), "
            "or name its login file in MUSTER_LOGIN",
            "no_login",
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidError(f"login file {file}: {error}", "bad_login") from error


def write_login(file: Path, login: Login) -> None:
    """Write ``login`` so that only this user can read it, in one step."""
    write_private_bytes(file, msgspec.json.format(msgspec.json.encode(login), indent=2) + b"\n")


def at(address: str, *names: str) -> str:
    """Return ``address`` with what an operator typed in place of each ``{}``. Raises InvalidError for no name."""
    for name in names:
        if name in ("", ".", ".."):
            raise InvalidError(f"{name!r} is not a name", "bad_name")
    return address.format(*(quote(name, safe="") for name in names))


class Api:
    """The API of one controller. Every method raises a ControllerError when the answer is not a success."""

    def __init__(self, login: Login) -> None:
        self._client = _client(login.api_url, login)

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON of a GET; parameters that are None are left out."""
        chosen = {name: value for name, value in parameters.items() if value is not None}
        return self._json("GET", path, params=chosen)

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a POST."""
        return self._json("POST", path, json={} if body is None else body)

    def delete(self, path: str) -> Any:
        """Return the JSON of a DELETE, None for an empty answer."""
        return self._json("DELETE", path)

    def download(self, path: str, file: Path) -> None:
        """Write the bytes of a GET to ``file``, whole or not at all."""
        beside = file.with_name(f".{file.name}.part")
        try:
            with unreachable(str(self._client.base_url)), self._client.stream("GET", path) as answer:
                if answer.status_code != 200:
                    raise_for(answer.status_code, answer.read())
                with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
                    for piece in answer.iter_bytes():
                        output.write(piece)
            beside.replace(file)
        except OSError as error:
            raise InvalidError(f"{file}: {error}", "unwritable") from error
        finally:
            beside.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Return whether a HEAD finds something."""
        with unreachable(str(self._client.base_url)):
            return self._client.head(path).status_code == 200

    def upload(self, path: str, file: Path) -> Any:
        """PUT the bytes of ``file``."""
        with file.open("rb") as body:
            size = {"Content-Length": str(file.stat().st_size)}
            timeout = httpx.Timeout(TIMEOUT, read=STORED_SECONDS)
            return self._json("PUT", path, content=body, headers=size, timeout=timeout)

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        with unreachable(str(self._client.base_url)):
            answer = self._client.request(method, path, **arguments)
        raise_for(answer.status_code, answer.content)
        return _decode(path, answer.content) if answer.content else None


class Gateway:
    """The gateway of one fleet, as a client program uses it."""

    def __init__(self, login: Login) -> None:
        self._client = _client(login.gateway_url, login)

    def infer(self, model: str, body: bytes, deadline_ms: int | None = None) -> tuple[Any, Mapping[str, str]]:
        """POST a V2 inference request; return the answer's JSON and its headers."""
        headers, timeout = {"Content-Type": "application/json"}, TIMEOUT
        if deadline_ms is not None:
            headers["Muster-Deadline-Ms"] = str(deadline_ms)
            timeout += deadline_ms / 1000  # the gateway answers in time, and says why
        path = at("/v2/models/{}/infer", model)
        with unreachable(str(self._client.base_url)):
            answer = self._client.post(path, content=body, headers=headers, timeout=timeout)
        raise_for(answer.status_code, answer.content)
        return _decode(path, answer.content), answer.headers

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()


def raise_for(status: int, content: bytes) -> None:
    """Raise the error that an answer with ``status`` stands for; return when it is a success."""
    if 200 <= status < 300:
        return
    message, code = f"the server answered with status {status}", "error"
    try:
        fields = msgspec.json.decode(content, type=dict[str, Any])
        message, code = str(fields.get("error", message)), str(fields.get("code", code))
    except msgspec.MsgspecError:
        pass  # an answer that is not ours: its status is all there is to say
    kind = _ERRORS.get(status) or (UnavailableError if status in (502, 504) else ControllerError)
    raise kind(message, code)


@contextmanager
def unreachable(url: str) -> Iterator[None]:
    """Turn what goes wrong on the way into UnavailableError."""
    try:
        yield
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{url} cannot be reached: {error or type(error).__name__}; is it running?", "unreachable"
        ) from error


def _reason() -> dict[str, str]:
    """MUSTER_REASON says why, for the audit trail."""
    words = os.environ.get("MUSTER_REASON", "")
    return {HEADER: quote(words)} if words else {}


def _client(url: str, login: Login) -> httpx.Client:
    try:
        return httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=login.ca_file),
            headers={"Authorization": f"Bearer {login.token}"} | _reason(),
            timeout=TIMEOUT,
            trust_env=False,
        )
    except OSError as error:
        raise InvalidError(f"the login's ca_file {login.ca_file}: {error}", "bad_login") from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidError(f"the login's address {url!r} or token: {error}", "bad_login") from error


def _decode(path: str, content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.MsgspecError as error:
        raise UnavailableError(f"{path} answered something odd: is it a controller? {error}", "odd") from error
