"""The whole application of a controller, as `app.py` puts it together, without its broker and without sockets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from controller.app import Control
from controller.database.connection import Database
from controller.installation import Installation, prepare
from controller.listening import Server, listen
from controller.settings import Settings
from controller.tenants import store, tokens


@dataclass
class Application:
    """The application and its first admin."""

    control: Control
    installation: Installation
    admin: TestClient

    @property
    def database(self) -> Database:
        return self.control._database

    def stranger(self) -> TestClient:
        return TestClient(self.control.api, raise_server_exceptions=False)

    def client(self, role: str, tenant: str = "default") -> TestClient:
        """Return a client with a token of ``role`` in ``tenant``, which is made when it is missing."""
        with self.database.begin() as c:
            missing = tenant not in store.tenant_names(c)
            if missing:
                store.add_tenant(c, tenant, time.time())
        if missing:
            prepare(self.installation.settings, time.time())  # as the next start does
        with self.database.begin() as c:
            token = tokens.make(c, tenant=tenant, name=role, role=role, now=time.time())
        headers = {"Authorization": f"Bearer {token.text}"}
        return TestClient(self.control.api, headers=headers, raise_server_exceptions=False)


@pytest.fixture
def url(application: Application) -> Iterator[str]:
    """The address of the application on a socket of its own, over plain HTTP."""
    socket = listen("127.0.0.1", 0, "TEST")
    server = Server(uvicorn.Config(application.control.api, lifespan="off", log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([socket])), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    settings = Settings(data=str(tmp_path / "data"), api_port=0, gateway_port=0, console_port=0, mqtt_port=0)
    installation = prepare(settings, time.time())
    control = Control(installation)
    headers = {"Authorization": f"Bearer {installation.admin_token}"}
    yield Application(control, installation, TestClient(control.api, headers=headers, raise_server_exceptions=False))
    control._series.close()
    control._database.close()
