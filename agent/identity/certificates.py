"""The device's certificate on disk, and the newer one that has yet to prove itself.

Invariant: the certificate in use is replaced only after the broker has taken the newer one; cut off at any point, a
whole certificate lies here. A newer one that is refused is tried in turn with the one in use. Asks nobody
(`renewing.py`) and connects to nobody (link/session.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from agent import durable
from agent.errors import DeviceError
from agent.identity import keys
from agent.identity.renewal import Life

NEXT_FILE: Final = "certificate.next.pem"
ROOTS_FILE: Final = "roots.pem"
MAX_ROOTS: Final = 4
_log = structlog.get_logger()


class Certificates:
    """Those of ``device`` in ``directory``, for ``key``."""

    def __init__(self, directory: Path, device: str, key: keys.PrivateKey) -> None:
        self._current = directory / keys.CERTIFICATE_FILE
        self._next = directory / NEXT_FILE
        self._roots = directory / ROOTS_FILE
        self._device = device
        self._key = key
        self._refused = False  # the last try of the newer one

    def for_connection(self) -> Path:
        """Return the certificate with which to connect next."""
        if self._next.exists() and not self._refused:
            return self._next
        self._refused = False
        return self._current

    def worked(self, path: Path) -> None:
        """Note that the broker took the certificate in ``path``: the newer one replaces the one in use."""
        if path != self._next:
            return
        try:
            durable.replace(self._next, self._current, "identity.renewed")
            _log.info("the renewed certificate is in use")
        except DeviceError as error:
            _log.warning("the renewed certificate could not be put in place of the old one", reason=str(error))

    def failed(self, path: Path) -> None:
        """Note that no connection came about with the certificate in ``path``."""
        self._refused = path == self._next

    def life(self) -> Life:
        """Return the dates of the newest certificate that is whole. Raises DeviceError."""
        found = self._newest()
        return Life(found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())

    def _newest(self) -> x509.Certificate:
        for path in (self._next, self._current):
            try:
                return keys.check_certificate(keys.read(path), self._key, self._device)
            except DeviceError:
                if path == self._current:
                    raise
        raise AssertionError("the loop returns or raises")

    def put(self, certificate: str, chain: str) -> bool:
        """Keep a certificate for the next connection, if it is another than the newest held; return whether it is.

        Raises DeviceError when it is not for this device.
        """
        data = _joined(certificate, chain).encode()
        found = keys.check_certificate(data, self._key, self._device)
        if found == self._newest():
            return False
        durable.write_atomic(self._next, data, "identity.next", mode=0o644)
        self._refused = False
        return True

    def put_roots(self, roots: str) -> bool:
        """Keep the CA certificates from which the fleet's servers may descend; return whether they are others.

        Raises DeviceError when these are none, too many, or no CA certificates.
        """
        try:
            found = x509.load_pem_x509_certificates(roots.encode())
            for root in found:
                limits = root.extensions.get_extension_for_class(x509.BasicConstraints).value
                if not limits.ca:
                    raise ValueError("not the certificate of a CA")
        except (ValueError, x509.ExtensionNotFound) as error:
            raise DeviceError(f"the fleet's CA certificates cannot be used: {error}", "bad_ca") from error
        if len(found) > MAX_ROOTS:
            raise DeviceError(f"{len(found)} CA certificates are more than {MAX_ROOTS}", "bad_ca")
        data = roots.encode()
        if self._roots.exists() and keys.read(self._roots) == data:
            return False
        durable.write_atomic(self._roots, data, "identity.roots", mode=0o644)
        return True


def _joined(*parts: str) -> str:
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts if part)
