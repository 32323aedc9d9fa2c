"""The agent's errors, by who is at fault.

    AgentError
    ├── UsageError         the person at the keyboard: wrong argument, wrong settings      exit code 2
    ├── ControllerError    the controller said no, and gave a reason                       exit code 4
    ├── UnreachableError   the network or the controller is away: try again later          exit code 6
    ├── TrustError         what was received must not be used (signature, hash, name)      exit code 4
    ├── DeviceError        this device: disk full, port taken, file unreadable             exit code 1
    └── ServingError       the serving process refused or does not answer                  exit code 1

Foreign exceptions are wrapped at the border where they arise, ``from`` their cause. Every message says what to do.
"""

from __future__ import annotations


class AgentError(Exception):
    """Something that a person may have to act on. ``code``: a short stable word for reports and tests."""

    exit_code = 1

    def __init__(self, message: str, code: str = "error") -> None:
        super().__init__(message)
        self.code = code


class UsageError(AgentError):
    """The command line or the settings are wrong."""

    exit_code = 2


class ControllerError(AgentError):
    """The controller refused, with a reason."""

    exit_code = 4


class UnreachableError(AgentError):
    """The controller, the broker or the network is away."""

    exit_code = 6


class TrustError(AgentError):
    """Received bytes that must not be used."""

    exit_code = 4


class DeviceError(AgentError):
    """This device cannot do it: disk, port, file, memory."""


class ServingError(AgentError):
    """The serving process refused or does not answer."""
