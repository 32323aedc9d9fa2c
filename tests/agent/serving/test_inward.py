import asyncio
from pathlib import Path

from agent.serving.build import Build
from agent.serving.inward import Inward
from agent.serving.models import Models
from agent.serving.server import Server
from tests.agent.serving.builds import as_json, make_model, request


async def test_answers_as_over_a_socket_and_gives_up_when_cancelled(tmp_path: Path) -> None:
    models = Models()
    file = make_model(tmp_path / "model.onnx", work=1024)
    await models.serve(Build(model="slow", version="1", build="slow-1", file=file, max_batch=1))
    loaded = models.active("slow")
    assert loaded is not None
    inward, path, body = Inward(Server(models)), "/v2/models/slow/infer", as_json(request())
    first = asyncio.create_task(inward("POST", path, {}, body))
    second = asyncio.create_task(inward("POST", path, {}, body))
    async with asyncio.timeout(10):
        while loaded.dispatcher.queued == 0:
            await asyncio.sleep(0.001)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert loaded.dispatcher.queued == 0
    found = await first
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    found = await inward("GET", "/health?x=1", {"Accept": "*/*"}, b"")
    assert (found.status, b'"ok"' in found.body) == (200, True)
    assert (await inward("POST", path, {"muster-deadline-ms": "x"}, body)).status == 400
    await models.close()
