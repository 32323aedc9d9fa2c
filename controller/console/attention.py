"""What needs a person: judged from how the fleet stands, each with its words and where to go.

Invariant: pure; what is listed is true now and somebody can do something about it; the worst comes first. Many devices
with one trouble are one line, so that the list is never longer than there are kinds of trouble and open rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

DAY: Final = 86_400.0
CERTIFICATE_SECONDS: Final = 7 * DAY
AUTHORITY_SECONDS: Final = 180 * DAY
OWN_SECONDS: Final = 30 * DAY
LOW_DISK_BYTES: Final = 256 * 1024**2
LOW_MEMORY_BYTES: Final = 48 * 1024**2
MAX_ERROR_SHARE: Final = 0.05
MAX_SUSPECTS: Final = 3  # told one by one
Severity = Literal["bad", "warn"]


@dataclass(frozen=True, slots=True)
class Item:
    """One line. ``kind``: a word for it; ``href``: the console's page about it; ``since``: seconds since 1970."""

    severity: Severity
    kind: str
    text: str
    href: str
    since: float | None = None


@dataclass(frozen=True, slots=True)
class RolloutSeen:
    """A rollout as far as it matters here."""

    id: str
    name: str
    state: str
    updated: float
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class JobSeen:
    """A build job that failed."""

    model: str
    version: int
    profile: str
    error: str
    finished: float


@dataclass(frozen=True, slots=True)
class DeviceSeen:
    """A device's figures as far as they matter here."""

    throttling: Sequence[str]
    disk_free_bytes: float | None
    memory_available_bytes: float | None
    requests_per_s: float | None
    errors_per_s: float | None


@dataclass(frozen=True, slots=True)
class Suspect:
    """A device that does what no device of ours does. ``kind``: "copied" or "flood"."""

    device: str
    kind: str
    why: str
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How the fleet stands. ``serving_down``, ``expiring``, ``inconsistent``, ``noticing``: numbers of devices.

    noticing: say that something keeps new builds from being installed. signatures: roles of the signed repository that
    somebody must sign again soon, with when they expire. suspects: devices that do
    what none of ours does.
    """

    lost: int
    late: int
    serving_down: int
    inconsistent: int
    noticing: int
    expiring: int
    first_expiry: float | None
    rollouts: Sequence[RolloutSeen]
    failed_jobs: Sequence[JobSeen]
    devices: Sequence[DeviceSeen]
    signatures: Sequence[tuple[str, float]] = ()
    suspects: Sequence[Suspect] = ()
    authority_ends: float | None = None
    own_certificates_end: float | None = None


def attention(standing: Standing, now: float) -> list[Item]:
    """Return what needs a person, the worst first, then the newest."""
    found = [*_devices(standing, now), *_rollouts(standing.rollouts, now), *_jobs(standing.failed_jobs)]
    found += _signatures(standing.signatures, now)
    found += _authority(standing, now)
    return sorted(found, key=lambda item: (item.severity != "bad", -(item.since or 0.0)))


def _devices(standing: Standing, now: float) -> list[Item]:
    found = []
    if standing.inconsistent:
        text = f"{_devices_word(standing.inconsistent)} could neither finish an update nor go back: look at the reasons"
        found.append(Item("bad", "inconsistent", text, "/rollouts"))
    for one in standing.suspects[:MAX_SUSPECTS]:
        found.append(Item("bad", one.kind, f"{one.device}: {one.why}", f"/devices/{one.device}", one.since))
    if len(standing.suspects) > MAX_SUSPECTS:
        text = f"{_devices_word(len(standing.suspects) - MAX_SUSPECTS)} more that cannot be what they seem"
        found.append(Item("bad", "suspects", text, "/devices"))
    if standing.serving_down:
        found.append(
            Item("bad", "down", f"serving is down on {_devices_word(standing.serving_down)}", "/devices?state=online")
        )
    if standing.noticing:
        text = f"{_devices_word(standing.noticing)} cannot take new builds: the device's page says why"
        found.append(Item("bad", "notice", text, "/devices?state=online"))
    if standing.lost:
        found.append(Item("bad", "lost", f"{_devices_word(standing.lost)} lost: not connected", "/devices?state=lost"))
    if standing.late:
        text = f"{_devices_word(standing.late)} late: connected, but silent for longer than a heartbeat"
        found.append(Item("warn", "late", text, "/devices?state=late"))
    if standing.expiring and standing.first_expiry is not None:
        over = standing.first_expiry <= now
        words = "have expired: they renew when they are back within 90 days" if over else "expire within a week"
        text = f"the certificates of {_devices_word(standing.expiring)} {words}; were these devices away for long?"
        found.append(Item("bad" if over else "warn", "certificate", text, "/devices?sort=enrolled"))
    throttled = sum(bool(device.throttling) for device in standing.devices)
    if throttled:
        text = f"{_devices_word(throttled)} slowed down by heat or power"
        found.append(Item("warn", "throttled", text, "/devices?sort=-temperature_celsius"))
    for name, least, words, href in (
        ("disk_free_bytes", LOW_DISK_BYTES, "nearly out of disk: updates wait", "/devices?sort=disk_free_bytes"),
        ("memory_available_bytes", LOW_MEMORY_BYTES, "nearly out of memory", "/devices?sort=memory_available_bytes"),
    ):
        short = sum((value := getattr(device, name)) is not None and value < least for device in standing.devices)
        if short:
            found.append(Item("warn", name.partition("_")[0], f"{_devices_word(short)} {words}", href))
    failing = sum(_fails(device) for device in standing.devices)
    if failing:
        text = f"{_devices_word(failing)} answer more than {MAX_ERROR_SHARE:.0%} of the requests with an error"
        found.append(Item("bad", "errors", text, "/devices?sort=-errors_per_s"))
    return found


def _fails(device: DeviceSeen) -> bool:
    asked, failed = device.requests_per_s, device.errors_per_s
    return bool(asked) and bool(failed) and (failed or 0.0) / (asked or 1.0) > MAX_ERROR_SHARE


def _authority(standing: Standing, now: float) -> list[Item]:
    found = []
    if standing.authority_ends is not None and (left := standing.authority_ends - now) < AUTHORITY_SECONDS:
        text = f"the fleet's certificate authority {_in_days(left)}: replace it, `muster authority announce`"
        found.append(Item("bad" if left < OWN_SECONDS else "warn", "authority", text, "/settings"))
    if standing.own_certificates_end is not None and (left := standing.own_certificates_end - now) < OWN_SECONDS:
        text = f"a certificate of the controller's own {_in_days(left)}: restart the controller, which makes it anew"
        found.append(Item("bad", "own-certificate", text, "/settings"))
    return found


def _in_days(seconds: float) -> str:
    return "has ended" if seconds <= 0 else f"ends in {int(seconds / DAY)} days"


def _signatures(signatures: Sequence[tuple[str, float]], now: float) -> list[Item]:
    if not signatures:
        return []
    over = signatures[0][1] <= now
    roles = ", ".join(role for role, _ in signatures[:3]) + (" and others" if len(signatures) > 3 else "")
    words = "has expired: devices take no new builds" if over else "expires soon"
    return [
        Item(
            "bad" if over else "warn",
            "signature",
            f"the signature of {roles} {words}: `muster keys status`",
            "/settings",
        )
    ]


def _rollouts(rollouts: Sequence[RolloutSeen], now: float) -> list[Item]:
    words: dict[str, tuple[Severity, str]] = {
        "PAUSED": ("warn", "is paused"),
        "FAILED": ("bad", "failed"),
        "ROLLING_BACK": ("bad", "is being rolled back"),
        "ROLLED_BACK": ("bad", "was rolled back"),
    }
    found = []
    for rollout in rollouts:
        told = words.get(rollout.state)
        if told is None or (rollout.state != "PAUSED" and now - rollout.updated > DAY):
            continue
        severity, word = told
        because = f": {rollout.reasons[0]}" if rollout.reasons else ""
        text = f"rollout of {rollout.name} {word}{because}"
        found.append(Item(severity, rollout.state, text, f"/rollouts/{rollout.id}", rollout.updated))
    return found


def _jobs(jobs: Sequence[JobSeen]) -> list[Item]:
    return [
        Item(
            "bad",
            "build",
            f"no build of {job.model} {job.version} for {job.profile}: {job.error}"[:400],
            f"/models/{job.model}",
            job.finished,
        )
        for job in jobs
    ]


def _devices_word(number: int) -> str:
    return "1 device" if number == 1 else f"{number:,} devices"
