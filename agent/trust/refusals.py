"""What the errors of TUF's client mean for a device, as stable codes and sentences that say what to do.

    expired        metadata is too old by this clock            clock_suspect  it may only look so: the clock is wrong
    rollback       older than what this device has seen         mixed          files that do not belong together
    unsigned       too few of the right keys signed it          malformed      not metadata, or not of this role
    oversized      longer than metadata may be                  bad_root       the root that the device was given is bad
    not_found      the repository lacks a file                  refused        the repository says no
    unauthorised   this device's token is not accepted
    unreachable    nobody there, or the transfer broke off      too_slow       the time was over
    redirected     pointed elsewhere                            encoded        a body that was not asked for
    bad_ca         not the server that the fleet's CA vouches for

and those of this device's disk (`agent/durable.py`: disk_full, read_only, disk_error), of its configuration
(bad_address, bad_ca) and of the child (`repository.py`: no_verdict; `child.py`: no_memory; busy: another refresh runs).
Decides nothing: whatever it was, nothing new is installed and serving goes on.
"""

from __future__ import annotations

import json
from typing import Final

from tuf.api import exceptions

from agent.errors import AgentError
from agent.trust.clock import Clock, date
from agent.trust.metadata_fetcher import Fetched, FetchError
from agent.trust.protocol import Failure


def explain(error: Exception, last: Fetched, clock: Clock) -> Failure:
    """Return what ``error`` means, which arose while ``last`` was the file that had been asked for."""
    role = last.role or "root"
    match error:
        case AgentError():
            return Failure(code=error.code, message=str(error))
        case exceptions.ExpiredMetadataError():
            return _expired(error, clock)
        case exceptions.BadVersionNumberError():
            return _version(error, last)
        case exceptions.UnsignedMetadataError():
            return Failure(
                code="unsigned",
                message=f"{role} metadata refused: too few of the keys that may sign it have ({error}); sign it again "
                "with these keys, or publish a root that names the new ones",
            )
        case exceptions.LengthOrHashMismatchError():
            return Failure(
                code="mixed",
                message=f"{role} metadata refused: it is not the file that the metadata above it names ({error}); "
                "publish the repository again, all roles together",
            )
        case exceptions.RepositoryError():
            return Failure(
                code="malformed",
                message=f"{role} metadata refused: {_first(error)}; publish the repository again, and look whether a "
                "login page or a proxy answers in its place",
            )
        case exceptions.DownloadLengthMismatchError():
            return Failure(
                code="oversized",
                message=f"{role} metadata refused: {error}; publish it again, and split a role that outgrew the limit "
                "into hash bins",
            )
        case exceptions.DownloadHTTPError():
            return _status(error, role)
        case FetchError() if error.code == "clock":
            return Failure(code="clock_suspect", message=f"{error}; set the clock, or let the network set it (NTP)")
        case FetchError():
            return Failure(code=error.code, message=f"{role} metadata did not come: {error}; {_ADVICE[error.code]}")
        case exceptions.DownloadError():
            return Failure(code="unreachable", message=f"{role} metadata did not come: {_first(error)}")
        case ValueError() | KeyError() | TypeError() | RecursionError():
            return Failure(
                code="malformed",
                message=f"{role} metadata refused: {type(error).__name__}: {error}; publish the repository again",
            )
    raise error


_ADVICE: Final = {
    "unreachable": "look whether the controller runs and the network is up; it is tried again",
    "too_slow": "it is tried again",
    "redirected": "give the address where the repository really is",
    "encoded": "let no proxy compress it",
    "bad_ca": "enrol the device again if the fleet's CA has changed",
}


def _expired(error: Exception, clock: Clock) -> Failure:
    if clock.ahead:
        return Failure(code="clock_suspect", message=f"{error}, but {clock.reason}")
    return Failure(
        code="expired",
        message=f"{error} ({date(clock.reference)} by this device's clock); start the controller so that it signs "
        "fresh metadata, or set the clock if it is wrong",
    )


def _version(error: Exception, last: Fetched) -> Failure:
    """Older than what was seen, or another version than the metadata above names? The file's own version tells."""
    if last.role not in ("root", "timestamp") and last.version is not None and _claimed(last.data) != last.version:
        return Failure(
            code="mixed",
            message=f"{last.role} metadata refused: it is not the version that the metadata above it names ({error}); "
            "publish the repository again, all roles together",
        )
    return Failure(
        code="rollback",
        message=f"{last.role} metadata refused: it is older than what this device has seen ({error}); if the "
        "controller was restored from a backup, let it sign newer versions",
    )


def _claimed(data: bytes) -> object:
    try:
        return json.loads(data)["signed"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _status(error: exceptions.DownloadHTTPError, role: str) -> Failure:
    if error.status_code in (404, 410):
        return Failure(
            code="not_found",
            message=f"{role} metadata is not in the repository ({error}); publish the repository again, or correct its "
            "address",
        )
    if error.status_code == 401:
        return Failure(
            code="unauthorised",
            message=f"{role} metadata is not given to this device ({error}); is it still enrolled?",
        )
    return Failure(code="refused", message=f"{role} metadata is not given out: {error}; it is tried again")


def _first(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return f"{text} ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) else text
