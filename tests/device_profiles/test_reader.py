"""The profile reader: what is shipped is complete, and a wrong file is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_profiles import ProfileError, find, load, read_profiles

BASE = """schema = 1
id = "base"
title = "Base"
arch = ["aarch64"]
[[runtimes]]
name = "engine"
precision = ["int8"]
[budgets]
agent_memory_mb = 100
model_memory_share = 0.5
"""
CHILD = """schema = 1
id = "child"
title = "Child"
extends = "base"
"""


def write(folder: Path, **documents: str) -> Path:
    for name, text in documents.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def test_shipped_profiles() -> None:
    profiles = load()
    assert set(profiles) == {
        "generic",
        "generic-aarch64",
        "generic-armv7",
        "generic-x86_64",
        "apple-silicon",
        "raspberry_pi",
    }
    assert all(profile.lineage[-1] == "generic" for profile in profiles.values())
    assert profiles["generic"].match == ()
    assert profiles["generic-armv7"].runtimes == ()
    assert all(profile.budgets.agent_memory_mb > 0 for profile in profiles.values())


def test_a_profile_is_found_by_id_or_alias() -> None:
    profiles = load()
    assert find(profiles, "rpi") is profiles["raspberry_pi"]
    assert find(profiles, "raspberry_pi") is profiles["raspberry_pi"]
    assert find(profiles, "toaster") is None


def test_what_is_left_open_comes_from_the_extended_profile(tmp_path: Path) -> None:
    child = CHILD + "aliases = ['kid']\n[budgets]\nmodel_memory_share = 0.25\n"
    profile = read_profiles(write(tmp_path, base=BASE, child=child))["child"]
    assert profile.lineage == ("child", "base")
    assert profile.arch == ("aarch64",)
    assert [runtime.name for runtime in profile.runtimes] == ["engine"]
    assert (profile.budgets.agent_memory_mb, profile.budgets.model_memory_share) == (100, 0.25)
    assert profile.match == ()


def test_an_empty_list_replaces_the_extended_one(tmp_path: Path) -> None:
    assert read_profiles(write(tmp_path, base=BASE, child=CHILD + "runtimes = []\n"))["child"].runtimes == ()


@pytest.mark.parametrize(
    ("addition", "named"),
    [
        ("colour = 'red'\n", "colour"),
        ("[budgets]\nagent_memory_gb = 1\n", "agent_memory_gb"),
        ("[[match]]\nconfidence = 0.5\nmodel = ['x']\n", "model"),
        ("[[runtimes]]\nname = 'e'\nprecision = ['int8']\nrequires = { glibcc = '2.27' }\n", "glibcc"),
        (
            "[[runtimes]]\nname = 'e'\nprecision = ['int8']\nrequires = { glibc = 'new' }\n",
            r"runtimes\[0\].requires.glibc",
        ),
        ("[[match]]\nconfidence = 2\narch = ['x']\n", r"match\[.+\]\.confidence"),
        ("[[match]]\nconfidence = 0.5\n", r"match\[0\] has no condition"),
        ("aliases = ['base']\n", "'base' already names base"),
        ("aliases = ['child']\n", "'child' already names child"),
        ("not toml", "line 5"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, addition: str, named: str) -> None:
    with pytest.raises(ProfileError, match=rf"^child\.toml: .*({named})"):
        read_profiles(write(tmp_path, base=BASE, child=CHILD + addition))


def test_circles_and_unknown_parents_are_found(tmp_path: Path) -> None:
    a = CHILD.replace("child", "a").replace("base", "b")
    with pytest.raises(ProfileError, match="there is no profile 'b'"):
        read_profiles(write(tmp_path, a=a))
    with pytest.raises(ProfileError, match="a > b > a is a circle"):
        read_profiles(write(tmp_path, a=a, b=CHILD.replace("child", "b").replace("base", "a")))
    with pytest.raises(ProfileError, match="a > a is a circle"):
        read_profiles(write(tmp_path, a=CHILD.replace("child", "a").replace("base", "a")))


def test_budgets_must_be_stated_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"budgets\.model_memory_share"):
        read_profiles(write(tmp_path, base=BASE.replace("model_memory_share = 0.5\n", "")))


def test_the_id_is_the_files_name(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"must be named base\.toml"):
        read_profiles(write(tmp_path, other=BASE))


def test_unreadable_and_overlong_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="binary"):
        read_profiles(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"#" * 70_000)
    with pytest.raises(ProfileError, match="larger"):
        read_profiles(tmp_path)
    (tmp_path / "binary.toml").unlink()
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ProfileError, match="folder"):
        read_profiles(tmp_path)
