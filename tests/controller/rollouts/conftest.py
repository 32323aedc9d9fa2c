"""A real database with a fleet in it, and devices that answer as told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy import insert, update

from controller.database import tables
from controller.database.connection import Database
from controller.rollouts import store
from controller.rollouts.loop import RolloutLoop, new_id
from controller.rollouts.model import Wanted
from controller.rollouts.policy import parse_policy, parse_selector
from wire.assignment import Assignment, Item, parse_assignment
from wire.envelope import ASSIGNMENT, key_id, open_envelope
from wire.messages import ExecutionReport, Fault
from wire.topics import Channel

NOW = 1_800_000_000.0
TENANT = "acme"


def device_id(number: int) -> str:
    return "d-" + "".join("abcdefghijklmnopqrstuvwxyz234567"[(number >> (5 * i)) & 31] for i in range(26))[::-1]


@dataclass
class Site:
    """``clock``: what the loop believes; ``sent``: the newest assignment that each device was sent."""

    database: Database
    key: ed25519.Ed25519PrivateKey
    clock: float = NOW
    sent: dict[str, Assignment] = field(default_factory=dict)
    publishes: int = 0
    broken_broker: bool = False
    sequences: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.loop = RolloutLoop(self.database, self.key, self.publish, lambda: self.clock, tend_seconds=0.0)

    async def publish(self, channel: Channel, device: str, payload: bytes) -> None:
        from controller.errors import UnavailableError

        if self.broken_broker:
            raise UnavailableError("the broker is away")
        public = self.key.public_key()
        opened = open_envelope(payload, ASSIGNMENT, {key_id(public): public})
        self.sent[device] = parse_assignment(opened)
        self.publishes += 1

    def add_devices(self, numbers: range, online: bool = True, tags: tuple[str, ...] = ()) -> list[str]:
        facts = {"at": NOW, "facts": {"arch": "x86_64"}, "runtimes": [{"name": "onnxruntime", "version": "1.23.2"}]}
        names = [device_id(number) for number in numbers]
        rows = [
            {
                "id": name,
                "tenant": TENANT,
                "name": f"device {number}",
                "tags": list(tags),
                "public_key": name,
                "join_token": "token",
                "enrolled": NOW,
                "online": online,
                "last_seen": self.clock if online else NOW - 10_000,
                "profile": "generic-x86_64",
                "facts": facts,
                "sequence": 0,
            }
            for number, name in zip(numbers, names, strict=True)
        ]
        with self.database.begin() as connection:
            connection.execute(insert(tables.devices), rows)
        return names

    def set_device(self, device: str, **values: Any) -> None:
        with self.database.begin() as connection:
            connection.execute(update(tables.devices).where(tables.devices.c.id == device).values(values))

    def add_build(self, version: int, model: str = "digits", profile: str = "generic-x86_64", **target: Any) -> str:
        build = f"b-{model}-{version}-{profile}"
        described = {"profile": profile, "arch": ["x86_64"], "runtime": "onnxruntime", "min_runtime": "1.20"} | target
        with self.database.begin() as connection:
            connection.execute(
                insert(tables.builds).values(
                    id=build,
                    tenant=TENANT,
                    model=model,
                    version=version,
                    job="job",
                    precision="int8",
                    target=described,
                    figures={},
                    verdict="published",
                    reasons=[],
                    manifest_sha256="0" * 64,
                    manifest_size=100,
                    created=NOW,
                )
            )
        return build

    def roll_out(self, version: int, policy: Any = None, selector: Any = None, model: str = "digits") -> str:
        rollout, release = new_id("r"), new_id("rel")
        with self.database.begin() as connection:
            store.add_release(
                connection, release=release, tenant=TENANT, name=release, models={model: version}, now=self.clock
            )
            store.add_rollout(
                connection,
                rollout=rollout,
                tenant=TENANT,
                release=release,
                selector=parse_selector(selector or {}),
                policy=parse_policy(policy or {}),
                now=self.clock,
            )
        self.clock += 0.001  # so that the next one is newer
        return rollout

    def want(self, rollout: str, wanted: Wanted) -> None:
        with self.database.begin() as connection:
            store.set_wanted(connection, rollout, wanted, self.clock)

    def state(self, rollout: str) -> str:
        with self.database.read() as connection:
            row = store.find_rollout(connection, TENANT, rollout)
        assert row is not None
        return str(row.state)

    def reasons(self, rollout: str) -> str:
        with self.database.read() as connection:
            row = store.find_rollout(connection, TENANT, rollout)
        assert row is not None
        return "; ".join(row.reasons)

    def states(self, rollout: str) -> dict[str, str]:
        """State by device, "back" for those on the way back."""
        with self.database.read() as connection:
            views = store.execution_views(connection, rollout)
        return {view.device + (" back" if view.reverting else ""): view.state.value for view in views}

    def item(self, device: str, component: str = "model:digits") -> Item:
        return next(item for item in self.sent[device].items if item.component == component)

    def report(
        self,
        device: str,
        state: str,
        item: Item | None = None,
        at: float | None = None,
        figures: dict[str, float] | None = None,
    ) -> store.Recorded:
        item = item or self.item(device)
        report = ExecutionReport(
            stream="stream-1",
            sequence=next(self.sequences),
            previous=0,
            at=at or self.clock,
            execution=item.execution,
            component=item.component,
            generation=item.generation,
            origin="test",
            state=state,
            fault=Fault(phase="WARMING", code="golden", message="wrong numbers") if state == "FAILED" else None,
            figures=figures or ({"p50_ms": 1.5} if state == "SUCCEEDED" else {}),
        )
        with self.database.begin() as connection:
            return store.record_report(connection, device, report, self.clock)

    async def settle(self, answer: Callable[[str, Item], str | None] = lambda device, item: "SUCCEEDED") -> None:
        """Turn the loop, and let each device answer what is new to it, until nothing changes."""
        answered: set[str] = set()
        while True:
            await self.loop.turn()
            new = [(d, i) for d, a in sorted(self.sent.items()) for i in a.items if i.execution not in answered]
            if not new:
                return
            for device, item in new:
                answered.add(item.execution)
                state = answer(device, item)
                if state is not None:
                    self.report(device, state, item)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = Database(tmp_path / "state.db")
    database.migrate()
    with database.begin() as connection:
        connection.execute(insert(tables.tenants).values(name=TENANT, created=NOW))
        connection.execute(
            insert(tables.join_tokens).values(
                id="token", tenant=TENANT, secret_sha256="", uses_left=9, tags=[], created=NOW, expires=NOW
            )
        )
        connection.execute(
            insert(tables.build_jobs).values(
                id="job", tenant=TENANT, model="digits", version=1, target={}, state="done", created=NOW
            )
        )
    yield Site(database, ed25519.Ed25519PrivateKey.generate())
    database.close()
