"""What the signed repository costs the controller: `python -m benchmarks.trust_repository`.

Publishes 2,000 builds of one profile through the application's own routes, with the real database on disk, as the
builder does: the first and the last hundred one by one, where each time the whole role is read, signed and checked
again, what lies between at once; and in a second repository all at once. Then the one more that makes the role go over
to hash bins, and some into their bins. Times are wall-clock and include the builder's reading and signing and the
controller's checking and storing, but no network. Bytes are what a device fetches after a publication (timestamp,
snapshot, and the roles on the way to one build) and what the database keeps.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from fastapi import FastAPI
from sqlalchemy import func, select

from benchmarks.table import Figure, json_option, show, spread
from controller.builds import publish_routes
from controller.builds import store as builds_store
from controller.builds.publish import Entry, Vouching
from controller.builds.sign import builder_key
from controller.database.connection import Database
from controller.database.tables import trust_metadata
from controller.tenants import store as tenants_store
from controller.tenants import tokens
from controller.tenants.guard import install_errors
from controller.trust import layout, store
from controller.trust import routes as trust_routes
from controller.trust.keeping import Keeper
from device_profiles import load as load_profiles
from wire.envelope import decode_public_key

TENANT, PROFILE = "acme", "generic-x86_64"
ENVELOPE_BYTES = 3000
KIB = 1024
SINGLE = 100  # builds at either end that are published one by one


class Repository:
    """A controller's repository of one tenant, and how the builder asks it (`controller.builds.publish`)."""

    def __init__(self, directory: Path) -> None:
        self.database = Database(directory / "state.db")
        self.database.migrate()
        self.key = builder_key(directory)
        public = decode_public_key(self.key.public)
        keeper = Keeper(self.database, directory / "keys", (public,), tuple(sorted(load_profiles())))
        now = time.time()
        with self.database.begin() as connection:
            tenants_store.add_tenant(connection, TENANT, now)
            keeper.found(connection, TENANT, now)
            token = tokens.make(connection, tenant=TENANT, name="builder", role="builder", now=now).text
        app = FastAPI()
        install_errors(app)
        app.state.database, app.state.keeper = self.database, keeper
        app.include_router(trust_routes.router)
        app.include_router(publish_routes.router)
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.AsyncClient(transport=transport, base_url="http://controller", headers=headers)
        self._vouching = Vouching(self, self.key)

    async def role(self, tenant: str, role: str) -> bytes | None:
        """Return the newest version of ``role``."""
        status = (await self._client.get("/api/v1/trust")).raise_for_status().json()
        version = next((row["version"] for row in status["roles"] if row["role"] == role), None)
        if version is None:
            return None
        return (await self._client.get(f"/tuf/{tenant}/metadata/{version}.{role}.json")).raise_for_status().content

    async def hand_in(self, roles: Mapping[str, bytes]) -> None:
        """Send new versions."""
        body = {"roles": {name: base64.b64encode(data).decode() for name, data in roles.items()}}
        (await self._client.post("/api/v1/trust/roles", json=body)).raise_for_status()

    async def publish(self, numbers: range) -> float:
        """Publish builds; return how many seconds it took. That their files lie here is arranged before."""
        entries, now = [entry(number) for number in numbers], time.time()
        with self.database.begin() as connection:
            for one in entries:
                digest = hashlib.sha256(one.envelope).hexdigest()
                builds_store.add_artifact(connection, TENANT, digest, len(one.envelope), now)
        began = time.perf_counter()
        await self._vouching.add(TENANT, PROFILE, entries, now)
        return time.perf_counter() - began

    def fetched(self) -> int:
        """Return how many bytes a device fetches to learn about one build, having all but the newest."""
        bins = layout.bin_prefix(PROFILE)
        with self.database.read() as connection:
            rows = {row.role: row.length for row in store.roles(connection, TENANT)}
            document = store.newest(connection, TENANT, PROFILE)
        assert document is not None
        total = rows[layout.TIMESTAMP] + rows[layout.SNAPSHOT] + rows[PROFILE]
        in_bins = [length for role, length in rows.items() if role.startswith(bins)]
        return total + (max(in_bins) if in_bins else 0)

    def stored(self) -> int:
        """Return how many bytes of metadata the database keeps."""
        with self.database.read() as connection:
            return int(connection.execute(select(func.sum(trust_metadata.c.length))).scalar_one())


def entry(number: int) -> Entry:
    """Return a build with an envelope of an ordinary size."""
    envelope = hashlib.sha256(str(number).encode()).hexdigest().encode() * (ENVELOPE_BYTES // 64)
    custom = {"version": number, "precision": "int8", "size": 1_234_567}
    return Entry(PROFILE, "digits", f"b-{number:032x}", envelope, custom)


async def measure(targets: int, directory: Path) -> list[Figure]:
    """Publish in all ways and return the rows."""
    (directory / "single").mkdir()
    (directory / "batch").mkdir()
    single, figures = Repository(directory / "single"), []
    part = min(SINGLE, targets // 4)
    first = [await single.publish(range(number, number + 1)) for number in range(part)]
    await single.publish(range(part, targets - part))
    last = [await single.publish(range(number, number + 1)) for number in range(targets - part, targets)]
    figures += [
        Figure(f"one build, of the first {part}", spread([1000 * one for one in first], "ms")),
        Figure(f"one build, of the last {part} of {targets}", spread([1000 * one for one in last], "ms")),
        Figure("the database keeps after all single ones", f"{single.stored() / KIB:.0f} KiB"),
    ]
    batch = Repository(directory / "batch")
    figures += [
        Figure(f"{targets} builds at once", f"{await batch.publish(range(targets)):.2f} s"),
        Figure("a device fetches after a publication", f"{batch.fetched() / KIB:.0f} KiB"),
        Figure("the database keeps", f"{batch.stored() / KIB:.0f} KiB"),
    ]
    if targets >= layout.MAX_FLAT:
        into = await batch.publish(range(targets, targets + 1))
        more = [await batch.publish(range(number, number + 1)) for number in range(targets + 1, targets + 21)]
        figures += [
            Figure(f"one more, into {2**layout.BIN_BITS} bins", f"{into:.2f} s"),
            Figure("one build into its bin", spread([1000 * one for one in more], "ms")),
            Figure("a device fetches after a publication", f"{batch.fetched() / KIB:.0f} KiB"),
        ]
    return figures


def main() -> None:
    """Measure and print."""
    parser = json_option(__doc__)
    parser.add_argument("--targets", type=int, default=layout.MAX_FLAT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-trust-") as directory:
        figures = asyncio.run(measure(arguments.targets, Path(directory)))
    show("The signed repository on the controller", figures, arguments.json)


if __name__ == "__main__":
    main()
