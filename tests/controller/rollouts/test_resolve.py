"""Which build for which device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollouts.fleet_store import platform
from controller.rollouts.model import BuildView, Platform
from controller.rollouts.resolve import Choice, NoBuild, resolve

DEVICE = Platform("raspberry-pi", "aarch64", (("onnxruntime", "1.23.2"),))
BUILD = BuildView("b-1", "raspberry-pi", ("aarch64",), "onnxruntime", "1.20", "int8", 1.0)


def chosen(builds: list[BuildView]) -> str:
    found = resolve(builds, DEVICE)
    assert isinstance(found, Choice)
    return found.build


def test_the_fitting_build_with_its_reasons() -> None:
    found = resolve([BUILD], DEVICE)
    assert isinstance(found, Choice)
    assert found.build == "b-1"
    assert "runtime onnxruntime 1.23.2 ≥ 1.20" in found.reasons


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (replace(BUILD, profile="jetson"), "made for profile jetson, the device is raspberry-pi"),
        (replace(BUILD, arch=("x86_64",)), "made for x86_64, the device is aarch64"),
        (replace(BUILD, runtime="tflite"), "needs tflite"),
        (replace(BUILD, min_runtime="1.24"), "needs onnxruntime 1.24, the device has 1.23.2"),
    ],
)
def test_why_none_fits(build: BuildView, words: str) -> None:
    found = resolve([build], DEVICE)
    assert isinstance(found, NoBuild)
    assert words in found.reasons[0]
    assert found.reasons[0].startswith("b-1")


def test_nothing_is_published() -> None:
    assert resolve([], DEVICE) == NoBuild(("this model version has no published build",))


def test_the_nearest_profile_then_the_newest() -> None:
    generic = replace(BUILD, id="b-2", profile="generic-aarch64", created=9.0)
    newer = replace(BUILD, id="b-3", created=2.0)
    for builds in ([BUILD, generic, newer], [newer, generic, BUILD]):
        assert chosen(builds) == "b-3"
    assert chosen([generic]) == "b-2"


def test_versions_are_numbers_and_processors_have_many_names() -> None:
    assert isinstance(resolve([replace(BUILD, min_runtime="1.9")], DEVICE), Choice), "1.23 is newer than 1.9"
    assert isinstance(resolve([replace(BUILD, min_runtime="1.23.2.0")], DEVICE), Choice)
    assert isinstance(resolve([replace(BUILD, arch=("arm64",))], DEVICE), Choice)
    assert isinstance(resolve([replace(BUILD, arch=())], replace(DEVICE, arch="")), Choice)


def test_what_a_device_says_of_itself() -> None:
    facts = {
        "facts": {"arch": "aarch64"},
        "runtimes": [
            {"name": "onnxruntime", "version": "1.23", "usable": True},
            {"name": "openvino", "version": None, "usable": False},
            {"name": "tflite", "version": "2.1", "usable": False},
        ],
    }
    assert platform("raspberry-pi", facts) == Platform("raspberry-pi", "aarch64", (("onnxruntime", "1.23"),))
    assert platform(None, None) == Platform("unknown", "", ())
    assert platform("x", {"facts": "?", "runtimes": []}) == Platform("x", "", ())
