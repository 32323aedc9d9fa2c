"""The controller's errors, by who is at fault; each knows its HTTP status and its exit code.

    ControllerError
    ├── InvalidError       the request or the settings are wrong                 400   exit 2
    ├── UnauthenticatedError  no token, or one that does not hold                401   exit 4
    ├── DeniedError        the role may not do that                              403   exit 4
    ├── NotFoundError      there is no such thing (or not in this tenant)        404   exit 3
    ├── ConflictError      the thing is in a state that forbids it               409   exit 5
    ├── TooLargeError      a bound was passed                                    413   exit 2
    ├── TooManyError       slow down                                             429   exit 6
    └── UnavailableError   a part of the fleet or the controller is away         503   exit 6

Foreign exceptions are wrapped at the border, ``from`` their cause. Every message says what to do.
"""

from __future__ import annotations


class ControllerError(Exception):
    """Something that a person may have to act on. ``code``: a short stable word for programs and tests."""

    status = 500
    exit_code = 1

    def __init__(self, message: str, code: str = "error") -> None:
        super().__init__(message)
        self.code = code


class InvalidError(ControllerError):
    """The request, the document or the settings are wrong."""

    status, exit_code = 400, 2


class UnauthenticatedError(ControllerError):
    """No credential, or one that does not hold."""

    status, exit_code = 401, 4


class DeniedError(ControllerError):
    """The role of this principal may not do that."""

    status, exit_code = 403, 4


class NotFoundError(ControllerError):
    """There is no such thing in this tenant."""

    status, exit_code = 404, 3


class ConflictError(ControllerError):
    """The thing is in a state that forbids it."""

    status, exit_code = 409, 5


class TooLargeError(ControllerError):
    """A bound on size was passed."""

    status, exit_code = 413, 2


class TooManyError(ControllerError):
    """Too many requests: try again later."""

    status, exit_code = 429, 6


class UnavailableError(ControllerError):
    """A part that is needed is away: try again later."""

    status, exit_code = 503, 6
