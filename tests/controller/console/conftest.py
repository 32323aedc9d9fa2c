"""The whole application of a controller without its broker, served on a port of its own, over a fleet that is made up
row by row: for what no test could wait for, such as ten thousand devices or a device that says hostile things."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import insert

from controller.app import Control
from controller.database.connection import Database
from controller.database.tables import devices, join_tokens
from controller.installation import Installation, prepare
from controller.listening import Server, listen
from controller.settings import Settings


@dataclass
class Served:
    """A running application. ``token``: an admin's."""

    control: Control
    installation: Installation
    url: str
    token: str

    @property
    def database(self) -> Database:
        return self.control._database

    def client(self, token: str | None = None) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token or self.token}"}, timeout=20)

    def login_path(self) -> str:
        with self.client() as client:
            return str(client.post("/api/v1/login-links").raise_for_status().json()["path"])

    def add_devices(self, rows: list[dict[str, Any]], tenant: str = "default") -> None:
        """Store devices; what a row does not say is that of a device that is well."""
        now = time.time()
        with self.database.begin() as c:
            join = f"j{tenant}"[:16]
            exists = c.exec_driver_sql("SELECT 1 FROM join_tokens WHERE id = ?", (join,)).first()
            if exists is None:
                values = {"uses_left": 0, "tags": [], "created": now, "expires": now}
                c.execute(insert(join_tokens).values(id=join, tenant=tenant, secret_sha256="", **values))
            c.execute(
                insert(devices),
                [
                    {
                        "tenant": tenant,
                        "tags": [],
                        "public_key": row["id"],
                        "join_token": join,
                        "enrolled": now,
                        "online": True,
                        "last_seen": now,
                        "sequence": 0,
                        "profile": None,
                        "reported": None,
                        "facts": None,
                        "agent_version": "0.1.0",
                        "boot": "b",
                        "revoked": None,
                    }
                    | row
                    for row in rows
                ],
            )


def device_id(number: int) -> str:
    """Return a device id that ends in ``number``."""
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    text = ""
    for _ in range(26):
        number, rest = divmod(number, 32)
        text = digits[rest] + text
    return f"d-{text}"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    settings = Settings(data=str(tmp_path / "data"), api_port=0, gateway_port=0, console_port=0, mqtt_port=0)
    installation = prepare(settings, time.time())
    assert installation.admin_token is not None
    control = Control(installation)
    control._database.migrate()
    socket = listen("127.0.0.1", 0, "TEST")
    port = socket.getsockname()[1]
    server = Server(uvicorn.Config(control.api, lifespan="off", log_config=None, access_log=False))

    def run() -> None:
        asyncio.run(server.serve([socket]))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Served(control, installation, f"http://127.0.0.1:{port}", installation.admin_token)
    finally:
        server.should_exit = True
        thread.join(10)
        control._series.close()
        control._database.close()
