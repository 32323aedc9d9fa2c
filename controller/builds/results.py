"""Takes what a builder says about a job into the database.

Invariant: a build is published only when its manifest was signed by a known builder key, speaks of this very job's
tenant, model, version and target, and every file that it names lies here with its size. What a builder claims beside
the manifest is not believed. Works inside the caller's transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from controller.builds import store
from controller.builds.artifacts import ArtifactStore
from controller.builds.documents import CandidateDocument
from controller.builds.store import AnyRow
from controller.errors import ConflictError, InvalidError
from controller.trust.layout import target_path
from controller.trust.repository import vouched
from wire.envelope import MANIFEST, PublicKey, open_envelope
from wire.errors import WireError
from wire.manifest import Figures, Manifest, Target, build_id, parse_manifest

MAX_ENVELOPE: Final = 1024**2


def take_candidate(
    connection: Connection,
    job: AnyRow,
    candidate: CandidateDocument,
    artifacts: ArtifactStore,
    keys: Mapping[str, PublicKey],
    now: float,
) -> str:
    """Store one candidate of ``job``; return the build's id. Raises InvalidError or ConflictError."""
    if candidate.verdict != "published":
        identifier = _candidate_id(job.id, candidate.precision)
        target, figures = _convert(candidate.target, Target), _convert(candidate.figures, Figures)
        reasons, manifest_sha256, manifest_size = list(candidate.reasons), None, None
    else:
        envelope = _envelope(connection, job.tenant, candidate.manifest_sha256, artifacts)
        identifier, manifest = _open(envelope, keys)
        _belongs(manifest, job)
        _files_here(connection, manifest)
        _vouched(connection, manifest, identifier, candidate.manifest_sha256)
        target, figures, reasons = manifest.target, manifest.figures, list(manifest.reasons)
        manifest_sha256, manifest_size = candidate.manifest_sha256, len(envelope)
    store.add_build(
        connection,
        {
            "id": identifier,
            "tenant": job.tenant,
            "model": job.model,
            "version": job.version,
            "job": job.id,
            "precision": candidate.precision,
            "target": msgspec.to_builtins(target),
            "figures": msgspec.to_builtins(figures),
            "verdict": candidate.verdict,
            "reasons": reasons,
            "manifest_sha256": manifest_sha256,
            "manifest_size": manifest_size,
            "created": now,
        },
    )
    return identifier


def _candidate_id(job: str, precision: str) -> str:
    return "c-" + hashlib.sha256(f"{job} {precision}".encode()).hexdigest()[:32]


def _convert(value: Mapping[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidError(
            f"a candidate's {kind.__name__.lower()} does not fit wire 6: {error}", "bad_result"
        ) from error


def _envelope(connection: Connection, tenant: str, sha256: str | None, artifacts: ArtifactStore) -> bytes:
    size = store.artifact_size(connection, tenant, sha256) if sha256 else None
    if sha256 is None or size is None:
        raise ConflictError("a published build needs its manifest: upload it first", "no_manifest")
    if size > MAX_ENVELOPE:
        raise InvalidError(f"a manifest has at most {MAX_ENVELOPE} bytes, this one has {size}", "bad_manifest")
    with artifacts.open(sha256) as stream:
        return stream.read()


def _open(envelope: bytes, keys: Mapping[str, PublicKey]) -> tuple[str, Manifest]:
    try:
        payload = open_envelope(envelope, MANIFEST, keys)
        return build_id(payload), parse_manifest(payload)
    except WireError as error:
        raise InvalidError(f"the manifest is not to be trusted: {error}", "bad_manifest") from error


def _belongs(manifest: Manifest, job: AnyRow) -> None:
    said = (manifest.tenant, manifest.model, manifest.model_version, manifest.target.profile, manifest.target.arch)
    asked = (job.tenant, job.model, job.version, job.target["profile"], list(job.target["arch"]))
    if said != asked:
        raise InvalidError(f"the manifest is for {said}, the job for {asked}", "other_job")


def _vouched(connection: Connection, manifest: Manifest, build: str, sha256: str | None) -> None:
    """No device takes a build for which its tenant's signed repository does not vouch: nobody shall be sent one."""
    path = target_path(manifest.target.profile, manifest.model, build)
    entry = vouched(connection, manifest.tenant, path)
    if entry is None or entry.hashes.get("sha256") != sha256:
        raise ConflictError(f"the signed repository has no {path} with these bytes: publish it first", "not_vouched")


def _files_here(connection: Connection, manifest: Manifest) -> None:
    for file in manifest.files:
        size = store.artifact_size(connection, manifest.tenant, file.sha256)
        if size != file.size:
            here = "is not here" if size is None else f"has {size} bytes here"
            raise ConflictError(f"{file.path} ({file.size} bytes) {here}: upload it first", "no_file")
