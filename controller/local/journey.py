"""The first journey: from nothing to an answered request, on one machine.

Invariant: it uses what an operator would use: the HTTP API, the agent's command line, the gateway. Every step looks
first whether it was done before, so that a second start goes on with what is there. Starting and stopping processes is
`local/run.py`'s business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from controller.commands.client import Api, Gateway, Login
from controller.commands.models import accuracy, push_version, wait_for_job
from controller.errors import ConflictError, ControllerError, TooManyError, UnavailableError
from controller.local.agents import LocalAgent, enrol
from controller.local.steps import Steps

MODEL: Final = "digits"
RELEASE: Final = "digits-1"
POLICY: Final = {"stages": [{"count": 1}, "rest"], "probation": 2.0}
WAIT_SECONDS: Final = 120.0
T = TypeVar("T")


class Journey:
    """The steps, in order. ``api`` and ``gateway``: as an operator; ``directory``: where the sample is kept."""

    def __init__(self, login: Login, directory: Path, agents: Sequence[LocalAgent], steps: Steps) -> None:
        self._api = Api(login)
        self._gateway = Gateway(login)
        self._login = login
        self._directory = directory
        self._agents = agents
        self._steps = steps

    async def model(self, arch: str) -> None:
        """Train the sample and have it built, unless that was done before."""
        known = await asyncio.to_thread(self._api.get, "/api/v1/models")
        if not any(row["name"] == MODEL for row in known["models"]):
            await self._train_and_push(arch)
        builds = (await asyncio.to_thread(self._api.get, "/api/v1/builds", model=MODEL))["builds"]
        if not any(row["verdict"] == "published" for row in builds):
            await self._finish_jobs()
            builds = (await asyncio.to_thread(self._api.get, "/api/v1/builds", model=MODEL))["builds"]
        for row in builds:
            figures = row["figures"]
            self._steps.note(
                f"{row['precision']}: {row['verdict']}, {figures['size_bytes'] / 1024:.0f} KiB, "
                f"p50 {figures['p50_ms'] * 1000:.0f} µs, accuracy {accuracy(row)}"
            )
            for reason in row["reasons"]:
                self._steps.note(f"    {reason}")
        if (await asyncio.to_thread(self._api.get, "/api/v1/trust"))["trial"]:
            self._steps.note("all signing keys lie on this machine: for trial only (`muster keys init` moves them)")

    async def _train_and_push(self, arch: str) -> None:
        from controller.local import sample

        with self._steps.step("training a digit classifier on scikit-learn's bundled images") as say:
            trained = await asyncio.to_thread(
                sample.train, self._directory, lambda text, share: say(f"{text} ({share:.0%})")
            )
        self._steps.note(f"{trained.accuracy:.2%} of {trained.held_out} images that it had never seen")
        with self._steps.step("making and measuring builds") as say:
            target = {"profile": f"generic-{arch}", "arch": arch, "optimization": "balanced"}
            version = await asyncio.to_thread(push_version, self._api, MODEL, trained.model, trained.data, [target])
            for job in version["jobs"]:
                await asyncio.to_thread(wait_for_job, self._api, job, say)

    async def _finish_jobs(self) -> None:
        """An earlier start was stopped while building: wait for what it asked for."""
        with self._steps.step("making and measuring builds") as say:
            model = await asyncio.to_thread(self._api.get, f"/api/v1/models/{MODEL}")
            for version in model["versions"]:
                for job in version["jobs"]:
                    await asyncio.to_thread(wait_for_job, self._api, job, say)

    async def enrol(self) -> None:
        """Enrol the agents that have no identity yet."""
        new = [agent for agent in self._agents if not agent.is_enrolled]
        if not new:
            return
        title = f"enrolling {new[0].name}" if len(new) == 1 else f"enrolling {len(new)} devices"
        with self._steps.step(title) as say:
            for agent in new:
                say(agent.name)
                answer = await asyncio.to_thread(
                    self._api.post, "/api/v1/join-tokens", {"uses": 1, "seconds": 600.0, "tags": ["local"]}
                )
                await enrol(agent, self._login.api_url, answer["token"])

    async def connected(self) -> None:
        """Wait until every agent is online and has said what it is."""
        names = {agent.name for agent in self._agents}
        with self._steps.step("waiting until the devices are online and have said what they are"):
            devices = await self._until(lambda: self._online(names), "the devices did not come online")
        for device in devices:
            facts = device["facts"]
            self._steps.note(f"{device['name']} {device['id']}: {facts['title']} ({device['profile']})")
            for line in facts["evidence"][:3]:
                self._steps.note(f"    {line}")

    async def roll_out(self) -> None:
        """Bring the sample to the devices, unless they run it already."""
        with self._steps.step("rolling the model out") as say:
            if not await asyncio.to_thread(self._rollout):
                release = await asyncio.to_thread(self._release)
                body = {"release": release, "selector": {}, "policy": POLICY}
                await asyncio.to_thread(self._api.post, "/api/v1/rollouts", body)
            await self._until(lambda: self._rolled_out(say), "the rollout did not finish")

    async def request(self) -> tuple[dict[str, Any], int]:
        """Send one held-out image through the gateway; return what came back and the digit that it shows."""
        image, label = await asyncio.to_thread(held_out_image, self._directory)
        body = infer_body(image)
        with self._steps.step("sending a digit through the gateway") as say:
            began = time.monotonic()
            while True:
                try:
                    sent = time.monotonic()
                    answer, headers = await asyncio.to_thread(self._gateway.infer, MODEL, body)
                    break
                except (UnavailableError, TooManyError) as error:
                    if time.monotonic() - began > WAIT_SECONDS:
                        raise
                    say(str(error))
                    await asyncio.sleep(0.1)
            took_ms = (time.monotonic() - sent) * 1000
        scores = answer["outputs"][0]["data"]
        seen = max(range(len(scores)), key=scores.__getitem__)
        return {"seen": seen, "device": headers.get("Muster-Device", "?"), "ms": took_ms}, label

    async def login_link(self) -> str:
        """Return the path of a one-time login link."""
        path: str = (await asyncio.to_thread(self._api.post, "/api/v1/login-links"))["path"]
        return path

    def close(self) -> None:
        """Let the connections go."""
        self._api.close()
        self._gateway.close()

    def _online(self, names: set[str]) -> list[dict[str, Any]] | None:
        listed = self._api.get("/api/v1/devices", state="online", limit=500)["devices"]
        here = [device for device in listed if device["name"] in names and device["profile"]]
        if {device["name"] for device in here} != names:
            return None
        return [self._api.get(f"/api/v1/devices/{device['id']}") for device in here]

    def _rollout(self) -> dict[str, Any] | None:
        rollouts: list[dict[str, Any]] = self._api.get("/api/v1/rollouts")["rollouts"]
        going = ("PENDING", "RUNNING", "SUCCEEDED")
        release = self._release_id()
        return next((row for row in rollouts if row["release"] == release and row["state"] in going), None)

    def _release_id(self) -> str | None:
        releases = self._api.get("/api/v1/releases")["releases"]
        return next((row["id"] for row in releases if row["name"] == RELEASE), None)

    def _release(self) -> str:
        known = self._release_id()
        if known is not None:
            return known
        created: str = self._api.post("/api/v1/releases", {"name": RELEASE, "models": {MODEL: 1}})["id"]
        return created

    def _rolled_out(self, say: Callable[[str], None]) -> bool | None:
        rollout = self._rollout()
        if rollout is None:
            raise ConflictError(f"the rollout ended without success; see {self._last_words()}", "rollout_failed")
        executions = self._api.get(f"/api/v1/rollouts/{rollout['id']}/executions")["executions"]
        say(", ".join(f"{row['device_name'] or row['device']} {row['state']}" for row in executions) or "planning")
        done = {row["device"] for row in executions if row["state"] in ("SUCCEEDED", "SKIPPED")}
        names = {agent.name for agent in self._agents}
        ids = {row["id"] for row in self._api.get("/api/v1/devices", limit=500)["devices"] if row["name"] in names}
        return True if ids <= done else None

    def _last_words(self) -> str:
        rollouts = self._api.get("/api/v1/rollouts")["rollouts"]
        return "; ".join(f"{row['id']} {row['state']}: {', '.join(row['reasons'])}" for row in rollouts[:1])

    async def _until(self, ask: Callable[[], T | None], complaint: str) -> T:
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            found = await asyncio.to_thread(ask)
            if found is not None:
                return found
            await asyncio.sleep(0.1)
        raise ControllerError(
            f"{complaint} within {WAIT_SECONDS:.0f} s: see the logs in the data directory", "too_slow"
        )


def held_out_image(directory: Path) -> tuple[list[float], int]:
    """Return one image that training never saw, flat, and the digit on it."""
    import numpy as np

    with np.load(directory / "data.npz", allow_pickle=False) as data:
        return [round(float(value), 4) for value in data["heldout_image"][0].ravel()], int(data["heldout_label"][0])


def infer_body(image: list[float]) -> bytes:
    """Return the V2 request for one 8 x 8 image."""
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image}
    return msgspec.json.encode({"inputs": [tensor]})
