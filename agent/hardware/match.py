"""Facts to a profile, with the reasons.

Invariant: always answers. The surest rule that holds wins, a tie goes to the more special profile; where none holds the
answer is the generic profile with confidence 0. Every sentence of the evidence names the fact, where it was read and
the rule that it led to. Reads nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.hardware.facts import Facts
from device_profiles import GENERIC, Budgets, Profile, Rule, Runtime

# What a known but unlisted, or an unknown, architecture leaves of a rule's confidence: the board is what it says it
# is, yet something about this machine is odd.
UNLISTED: Final = 0.5
UNKNOWN: Final = 0.9

_NOTHING: Final = Profile(
    id=GENERIC,
    title="Unrecognised machine",
    aliases=(),
    lineage=(GENERIC,),
    arch=(),
    match=(),
    runtimes=(),
    budgets=Budgets(agent_memory_mb=120, model_memory_share=0.4),
)


@dataclass(frozen=True, slots=True)
class Match:
    """The profile that fits. confidence: 0 to 1. evidence: plain sentences, the deciding ones first."""

    profile: Profile
    confidence: float
    evidence: tuple[str, ...]


def match(facts: Facts, profiles: Mapping[str, Profile]) -> Match:
    """Return the profile out of ``profiles`` that fits ``facts`` best."""
    found = [
        candidate
        for name in sorted(profiles)
        for rule in profiles[name].match
        if (candidate := _candidate(facts, profiles[name], rule)) is not None
    ]
    if not found:
        return _unrecognised(facts, profiles.get(GENERIC, _NOTHING))
    best = max(found, key=lambda candidate: (candidate.confidence, len(candidate.profile.lineage)))
    others = {other.profile.id: other for other in found if other.profile.id != best.profile.id}
    evidence = [
        *best.evidence,
        *(
            f"{other.profile.id} fits as well, with a confidence of {other.confidence:.2f} against "
            f"{best.confidence:.2f} for {best.profile.id}."
            for other in list(others.values())[:8]
        ),
    ]
    if facts.device_tree.model:
        evidence.append(f"The model string {facts.device_tree.model!r} is for people; nothing was decided by it.")
    return Match(best.profile, best.confidence, tuple(evidence))


def unmet(runtime: Runtime, facts: Facts) -> tuple[str, ...]:
    """Return why ``runtime`` cannot be used here, empty when it can. What is not known does not count as met."""
    needs = runtime.requires
    reasons: list[str] = []
    if needs.arch and facts.arch not in needs.arch:
        reasons.append(f"needs the architecture {' or '.join(needs.arch)}, this is {facts.arch or 'unknown'}")
    reasons += [f"needs the CPU feature {name}" for name in needs.features if name not in facts.cpu.features]
    for what, least, have in (("glibc", needs.glibc, facts.glibc), ("Python", needs.python, facts.python)):
        if least is not None and (have is None or _numbers(have) < _numbers(least)):
            reasons.append(f"needs {what} {least} or newer, this is {have or 'unknown'}")
    return tuple(reasons)


def _candidate(facts: Facts, profile: Profile, rule: Rule) -> Match | None:
    evidence: list[str] = []
    for key, stated, values in (
        ("compatible", rule.compatible, facts.device_tree.compatible),
        ("system", rule.system, (facts.system,) if facts.system else ()),
        ("arch", rule.arch, (facts.arch,) if facts.arch else ()),
    ):
        if not stated:
            continue
        pair = next(((value, pattern) for value in values for pattern in stated if _fits(value, pattern)), None)
        if pair is None:
            return None
        source = facts.sources.get(key, "unknown source")
        evidence.append(f"{key} {pair[0]!r} ({source}) fits {pair[1]!r} in a rule of {profile.id}.")
    confidence = rule.confidence
    if facts.arch is None:
        confidence *= UNKNOWN
        evidence.append(f"The architecture is not known; {profile.id} is held with less confidence.")
    elif profile.arch and facts.arch not in profile.arch:
        confidence *= UNLISTED
        evidence.append(
            f"arch {facts.arch!r} ({facts.sources.get('arch', 'unknown source')}) is not among those of {profile.id} "
            f"({', '.join(profile.arch)}); it is held with less confidence."
        )
    return Match(profile, confidence, tuple(evidence))


def _fits(value: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(re.escape(piece) for piece in pattern.split("*")), value) is not None


def _unrecognised(facts: Facts, profile: Profile) -> Match:
    if facts.arch is None:
        sentence = "No rule fits, and the architecture is not known: treated as a generic machine."
    else:
        source = facts.sources.get("arch", "unknown source")
        sentence = f"No rule fits arch {facts.arch!r} ({source}): treated as a generic machine."
    return Match(profile, 0.0, (sentence,))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", version)[:4])
