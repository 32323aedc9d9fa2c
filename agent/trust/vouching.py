"""Whether the signed repository vouches for the very build that an assignment names (wire 7.4, wire 10.2).

Invariant: pure. A build is vouched for when the repository has a target at the build's own path with the length and
SHA-256 of the manifest's envelope that the assignment names: whoever holds the controller can choose among such builds
and add none; whoever holds a builder's key can add builds and send none anywhere.
"""

from __future__ import annotations

from agent.errors import TrustError
from agent.trust.protocol import Target


def build_path(profile: str, model: str, build: str) -> str:
    """Return where the repository keeps the build ``build`` of ``model`` for the boards of ``profile``."""
    return f"builds/{profile}/{model}/{build}.json"


def require_vouched(path: str, target: Target | None, sha256: str, size: int) -> None:
    """Return when ``target``, found at ``path``, is the envelope of ``size`` bytes with ``sha256``.

    Raises TrustError: "not_vouched" where the repository has no such target, "disagree" where it has another one.
    """
    if target is None:
        raise TrustError(
            f"the signed repository has no {path}; wait until its builder has published it, or withdraw the rollout",
            "not_vouched",
        )
    if (target.path, target.sha256, target.length) != (path, sha256, size):
        raise TrustError(
            f"the assignment names {sha256} ({size} bytes) for {path}, the signed repository {target.sha256 or 'none'} "
            f"({target.length} bytes): one of them is not what was meant; publish the build and roll it out again",
            "disagree",
        )
