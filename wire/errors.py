"""What can be wrong with bytes that came from outside, by kind.

WireError
├── MalformedError   not what the clause asks for: wrong JSON, wrong field, too large
├── VersionError     a later version of the contract than this program speaks
└── SignatureError   unknown key, wrong purpose, or the bytes were changed
"""

from __future__ import annotations


class WireError(ValueError):
    """Bytes from outside that must not be used."""


class MalformedError(WireError):
    """The bytes do not have the form that the contract asks for."""


class VersionError(WireError):
    """The bytes speak a version of the contract that this program does not know."""


class SignatureError(WireError):
    """The signature is missing, from an unknown key, for another purpose, or does not fit the bytes."""
