"""What must be refused is refused, with words that say what to do, and nothing is lost by it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.journeys.local_fleet import ANY_PORTS, LocalFleet, wait_for

pytestmark = pytest.mark.journey


def agent(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def muster(fleet: LocalFleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controller", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "MUSTER_LOGIN": str(fleet.data / "login.json")},
    )


def enrol(data: Path, fleet: LocalFleet, token: str) -> subprocess.CompletedProcess[str]:
    url = fleet.login.api_url
    return agent("enrol", "--data", str(data), "--controller", url, "--token-file", "-", stdin=token + "\n")


def join_token(fleet: LocalFleet, **body: Any) -> str:
    with fleet.api() as api:
        answer = api.post("/api/v1/join-tokens", json=body)
    token: str = answer.raise_for_status().json()["token"]
    return token


# joining -------------------------------------------------------------------------------------------------------------


def test_a_token_joins_one_device_and_no_second(fleet: LocalFleet, tmp_path: Path) -> None:
    token = join_token(fleet)
    first = enrol(tmp_path / "one", fleet, token)
    assert first.returncode == 0, first.stderr
    again = enrol(tmp_path / "one", fleet, token)
    assert again.returncode == 0, again.stderr
    second = enrol(tmp_path / "two", fleet, token)
    assert second.returncode == 4
    assert "used" in second.stderr
    assert "muster tokens join" in second.stderr


def test_an_expired_token_is_refused(fleet: LocalFleet, tmp_path: Path) -> None:
    token = join_token(fleet, seconds=0.001)
    late = enrol(tmp_path / "late", fleet, token)
    assert late.returncode == 4
    assert "expired" in late.stderr


def test_a_wrong_secret_and_a_wrong_fingerprint_are_refused(fleet: LocalFleet, tmp_path: Path) -> None:
    words = join_token(fleet).split(".")
    wrong_secret = ".".join([*words[:3], "a" * 32, words[4]])
    refused = enrol(tmp_path / "a", fleet, wrong_secret)
    assert refused.returncode == 4
    assert words[3] not in refused.stderr
    other_fleet = ".".join([*words[:4], "a" * 52])
    refused = enrol(tmp_path / "b", fleet, other_fleet)
    assert refused.returncode == 4
    assert "fingerprint" in refused.stderr


def test_what_is_no_token_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    refused = agent(
        "enrol", "--data", str(tmp_path), "--controller", "https://127.0.0.1:9", "--token-file", "-", stdin="hello\n"
    )
    assert refused.returncode in (2, 4)
    assert "muster tokens join" in refused.stderr
    assert "hello" not in refused.stderr


def test_without_network_enrolment_says_so_and_can_be_tried_again(fleet: LocalFleet, tmp_path: Path) -> None:
    token = join_token(fleet)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    away = agent(
        *("enrol", "--data", str(tmp_path / "x"), "--controller", f"https://127.0.0.1:{port}", "--token-file", "-"),
        stdin=token + "\n",
    )
    assert away.returncode == 6
    assert str(port) in away.stderr
    assert enrol(tmp_path / "x", fleet, token).returncode == 0


# asking --------------------------------------------------------------------------------------------------------------

IMAGE = [0.5] * 64


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": IMAGE} | changes


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"inputs": [tensor(shape=[1, 1, 8, 9])]}, 400, "shape"),
        ({"inputs": [tensor(shape=[1, 64])]}, 400, "shape"),
        ({"inputs": [tensor(datatype="INT64")]}, 400, "FP32"),
        ({"inputs": [tensor(name="picture")]}, 400, "picture"),
        ({"inputs": []}, 400, "image"),
        ({"inputs": [tensor(data=[0.5] * 63)]}, 400, "64"),
        ({"inputs": [tensor(data=["a"] * 64)]}, 400, "image"),
        ({"inputs": [tensor()], "outputs": [{"name": "nothing"}]}, 400, "nothing"),
        ({}, 400, "inputs"),
        ([], 400, "JSON"),
    ],
)
def test_a_wrong_request_is_explained(fleet: LocalFleet, body: Any, status: int, word: str) -> None:
    with fleet.gateway() as gateway:
        answer = gateway.post("/v2/models/digits/infer", json=body)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]


def test_broken_json_unknown_models_and_missing_tokens_are_explained(fleet: LocalFleet) -> None:
    with fleet.gateway() as gateway:
        broken = gateway.post("/v2/models/digits/infer", content=b'{"inputs": [')
        assert (broken.status_code, "JSON" in broken.json()["error"]) == (400, True)
        unknown = gateway.post("/v2/models/cats/infer", json={"inputs": [tensor()]})
        assert unknown.status_code == 404
        assert "cats" in unknown.json()["error"]
        nobody = gateway.post(
            "/v2/models/digits/infer", json={"inputs": [tensor()]}, headers={"Authorization": "Bearer mut.a.b"}
        )
        assert nobody.status_code == 401
        assert gateway.post("/v2/models/digits/infer", content=fleet.request_body()).status_code == 200


def test_an_oversized_body_is_refused_while_others_are_answered(fleet: LocalFleet) -> None:
    with fleet.gateway() as gateway:
        try:
            answer = gateway.post("/v2/models/digits/infer", content=b" " * (17 * 1024**2))
            assert answer.status_code == 413
            assert "16777216" in answer.text
        except httpx.WriteError:
            pass  # the gateway hung up before all was sent, which refuses it as well
    with fleet.gateway() as gateway:
        assert gateway.post("/v2/models/digits/infer", content=fleet.request_body()).status_code == 200


# building ------------------------------------------------------------------------------------------------------------


def refused_by_the_engine(file: Path) -> None:
    """A well-formed ONNX file with an operator that no runtime knows."""
    node = helper.make_node("Teleport", ["image"], ["scores"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])
    model = helper.make_model(
        helper.make_graph([node], "g", [image], [scores]), opset_imports=[helper.make_opsetid("", 17)]
    )
    file.write_bytes(model.SerializeToString())


def data_file(file: Path) -> None:
    rng = np.random.default_rng(1)
    rows = rng.random((40, 1, 8, 8), dtype=np.float32)
    np.savez(
        file,
        calibration_image=rows,
        heldout_image=rows,
        heldout_label=rng.integers(0, 10, 40),
        golden_image=rows[:8],
    )


def test_a_model_that_the_engine_refuses_fails_its_build_and_nothing_else(fleet: LocalFleet, tmp_path: Path) -> None:
    refused_by_the_engine(tmp_path / "bad.onnx")
    data_file(tmp_path / "data.npz")
    onnx_file, npz = str(tmp_path / "bad.onnx"), str(tmp_path / "data.npz")
    pushed = muster(fleet, "models", "push", "teleport", "--onnx", onnx_file, "--data", npz)
    assert pushed.returncode == 5, pushed.stderr
    assert "Teleport" in pushed.stderr
    (tmp_path / "garbage.onnx").write_bytes(os.urandom(1000))
    pushed = muster(fleet, "models", "push", "garbage", "--onnx", str(tmp_path / "garbage.onnx"), "--data", npz)
    assert pushed.returncode == 5, pushed.stderr
    assert "ONNX" in pushed.stderr
    builds = json.loads(muster(fleet, "builds", "list", "--model", "digits", "--json").stdout)
    assert any(build["verdict"] == "published" for build in builds)


# starting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["API", "GATEWAY", "CONSOLE", "MQTT"])
def test_a_taken_port_is_named_and_nothing_stays_behind(tmp_path: Path, taken: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "controller", "local", "--data", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env={**os.environ, **ANY_PORTS, f"MUSTER_{taken}_PORT": str(port)},
        )
    assert done.returncode in (5, 6), done.stderr
    assert str(port) in done.stderr
    assert f"MUSTER_{taken}_PORT" in done.stderr
    assert wait_for(lambda: not LocalFleet(None, tmp_path, 1).processes(), "everything has ended")  # type: ignore[arg-type]  # no process of its own


def test_a_second_controller_in_the_same_place_is_refused(fleet: LocalFleet) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "controller", "local", "--data", str(fleet.data)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5
    assert "already runs" in done.stderr


def test_a_device_that_is_not_there_is_named(fleet: LocalFleet) -> None:
    for command in ("show", "restart", "logs"):
        done = muster(fleet, "devices", command, "device-99")
        assert done.returncode == 3, done.stderr
        assert "no device is named 'device-99'" in done.stderr


def test_a_person_without_rights_is_told_which_rule(fleet: LocalFleet) -> None:
    made = json.loads(muster(fleet, "tokens", "create", "watcher", "--role", "viewer", "--json").stdout)
    with fleet.api() as api:
        answer = api.post("/api/v1/join-tokens", json={}, headers={"Authorization": f"Bearer {made['token']}"})
    assert answer.status_code == 403
    assert "viewer" in answer.json()["error"]


def test_onnx_is_the_version_that_the_lock_names() -> None:
    lock = (Path(__file__).parents[2] / "packaging/locks/test.txt").read_text()
    assert f"\nonnx=={onnx.__version__} " in lock
