"""One machine in one answer: facts, the profile they led to, engines and budgets, as plain JSON values.

Invariant: describes and changes nothing; answers for any directory. Engines are looked up only for this very machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from agent.hardware.facts import Facts
from agent.hardware.match import match, unmet
from agent.hardware.probe import probe, runtimes
from agent.hardware.reading import Root
from device_profiles import Budgets, Profile, load

_MIB: Final = 1024**2


def describe(root: Path = Path("/"), data: Path | None = None) -> dict[str, Any]:
    """Return what the machine under ``root`` is; ``data`` as for ``probe``.

    Keys: profile, aliases, title, confidence, evidence, facts, accelerators, runtimes, budgets. Each runtime has
    name, version (None where it is not installed), precision (best first), usable, and reasons why it is not.
    """
    facts = probe(root, data)
    found = match(facts, load())
    return {
        "profile": found.profile.id,
        "aliases": list(found.profile.aliases),
        "title": facts.device_tree.model or found.profile.title,
        "confidence": round(found.confidence, 3),
        "evidence": list(found.evidence),
        "facts": facts.as_dict(),
        "accelerators": [],
        "runtimes": _runtimes(found.profile, facts, runtimes() if Root(root).live else None),
        "budgets": _budgets(found.profile.budgets, facts),
    }


def _runtimes(profile: Profile, facts: Facts, installed: list[dict[str, str]] | None) -> list[dict[str, Any]]:
    versions = {engine["name"]: engine["version"] for engine in installed or []}
    absent = "is not installed" if installed is not None else "whether it is installed cannot be seen in a folder"
    rows: list[dict[str, Any]] = []
    for runtime in profile.runtimes:
        reasons = list(unmet(runtime, facts))
        version = versions.pop(runtime.name, None)
        if version is None:
            reasons.append(absent)
        rows.append(
            {
                "name": runtime.name,
                "version": version,
                "precision": list(runtime.precision),
                "usable": not reasons,
                "reasons": reasons,
            }
        )
    for name, version in versions.items():
        rows.append(
            {
                "name": name,
                "version": version,
                "precision": [],
                "usable": False,
                "reasons": [f"is not listed for {profile.id}"],
            }
        )
    return rows


def _budgets(budgets: Budgets, facts: Facts) -> dict[str, int | None]:
    usable = facts.memory.usable_bytes
    return {
        "agent_memory_bytes": budgets.agent_memory_mb * _MIB,
        "model_memory_bytes": None if usable is None else int(usable * budgets.model_memory_share),
    }
