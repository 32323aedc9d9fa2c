"""The HTTP API as a builder uses it.

Invariant: TLS against the fleet's own CA, always; a refusal keeps the controller's words and code, an answer that does
not come is UnavailableError. Files are streamed and checked against their SHA-256. Does not retry: `worker.py` does.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from controller.errors import ConflictError, ControllerError, InvalidError, UnavailableError

BLOCK: Final = 1024**2
TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
MAX_ANSWER: Final = 4 * 1024**2


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A leased job. lease_seconds: how long it is ours without a sign of life."""

    id: str
    tenant: str
    model: str
    version: int
    target: dict[str, Any]
    attempt: int
    source_sha256: str
    data_sha256: str
    lease_seconds: float


class _Lease(msgspec.Struct, frozen=True):
    job: Job | None


class Role(msgspec.Struct, frozen=True):
    """The newest version of a role; ``expires`` in seconds since 1970."""

    role: str
    version: int
    expires: float


class Repository(msgspec.Struct, frozen=True):
    """A tenant's signed repository, as far as a builder needs it."""

    tenant: str
    roles: list[Role]


class BuilderApi:
    """One connection pool to the API at ``api_url`` (https). Raises InvalidError for a bad address or CA file."""

    def __init__(self, api_url: str, ca_file: Path, token: str) -> None:
        if not api_url.startswith("https://"):
            raise InvalidError(f"the builder speaks HTTPS only, not {api_url!r}: its token must stay secret", "no_tls")
        try:
            context = ssl.create_default_context(cafile=str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise InvalidError(f"CA file {ca_file}: {error}", "bad_ca") from error
        self._client = httpx.AsyncClient(
            base_url=api_url,
            verify=context,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def lease(self) -> Job | None:
        """Return a job to work on, None when nothing waits."""
        answer = await self._post("/api/v1/build-jobs/lease", {})
        try:
            return msgspec.json.decode(answer, type=_Lease).job
        except msgspec.MsgspecError as error:
            raise UnavailableError(f"the controller answered something odd to a lease: {error}", "odd") from error

    async def progress(self, job: Job, text: str) -> None:
        """Tell progress and renew the lease. Raises ConflictError when the job is not ours any more."""
        await self._post(f"/api/v1/build-jobs/{job.id}/progress", {"attempt": job.attempt, "progress": text[:200]})

    async def result(self, job: Job, result: dict[str, Any]) -> None:
        """Tell how the attempt ended. Raises ConflictError when the job is not ours any more."""
        await self._post(f"/api/v1/build-jobs/{job.id}/result", {"attempt": job.attempt} | result)

    async def download(self, sha256: str, target: Path) -> None:
        """Write an artifact to ``target``. Raises UnavailableError when what came is not that artifact."""
        digest = hashlib.sha256()
        with _explained(f"artifact {sha256}"):
            async with self._client.stream("GET", f"/api/v1/artifacts/{sha256}") as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread())
                with target.open("wb") as stream:
                    async for block in response.aiter_bytes(BLOCK):
                        digest.update(block)
                        stream.write(block)
        if digest.hexdigest() != sha256:
            raise UnavailableError(f"artifact {sha256} arrived with other bytes: try again", "hash_mismatch")

    async def upload(self, sha256: str, content: Path | bytes) -> None:
        """Store ``content`` under its hash, unless it is there already."""
        address = f"/api/v1/artifacts/{sha256}"
        with _explained(f"artifact {sha256}"):
            if (await self._client.head(address)).status_code == 200:
                return
            response = await self._client.put(address, content=_blocks(content))
            if response.status_code not in (200, 201):
                raise _refusal(response.status_code, response.content)

    async def repository(self) -> Repository:
        """Return how the signed repository of this token's tenant stands."""
        with _explained("the signed repository"):
            answer = await self._client.get("/api/v1/trust")
        if answer.status_code != 200:
            raise _refusal(answer.status_code, answer.content)
        try:
            return msgspec.json.decode(answer.content, type=Repository)
        except msgspec.MsgspecError as error:
            raise UnavailableError(f"the controller answered something odd about trust: {error}", "odd") from error

    async def role(self, tenant: str, role: str) -> bytes | None:
        """Return the newest version of a role of the signed repository, None where there is none yet."""
        version = next((one.version for one in (await self.repository()).roles if one.role == role), None)
        if version is None:
            return None
        with _explained(role):
            answer = await self._client.get(f"/tuf/{tenant}/metadata/{version}.{role}.json")
        if answer.status_code != 200:
            raise _refusal(answer.status_code, answer.content)
        return answer.content

    async def hand_in(self, roles: Mapping[str, bytes]) -> None:
        """Send new versions of roles, all or none. Raises ConflictError ("not_next") when somebody else was first."""
        body = {"roles": {name: base64.b64encode(data).decode() for name, data in roles.items()}}
        await self._post("/api/v1/trust/roles", body)

    async def _post(self, address: str, body: dict[str, Any]) -> bytes:
        with _explained(address):
            response = await self._client.post(address, json=body)
            if response.status_code != 200:
                raise _refusal(response.status_code, response.content)
            if len(response.content) > MAX_ANSWER:
                raise UnavailableError(f"{address}: an answer of {len(response.content)} bytes", "odd")
            return response.content


async def _blocks(content: Path | bytes) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while block := stream.read(BLOCK):
            yield block


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{what}: the controller does not answer ({error or type(error).__name__})", "away"
        ) from error


def _refusal(status: int, body: bytes) -> ControllerError:
    try:
        said = msgspec.json.decode(body, type=dict[str, str])
    except msgspec.MsgspecError:
        said = {}
    message = said.get("error", f"HTTP status {status}")[:1000]
    code = said.get("code", "refused")
    if status == 409:
        return ConflictError(message, code)
    if status in (429, 502, 503, 504) or status >= 500:
        return UnavailableError(message, code)
    return ControllerError(message, code)
