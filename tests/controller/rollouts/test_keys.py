"""The key for assignments is made once and never replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import UnavailableError
from controller.rollouts.keys import FILE_NAME, assignment_key, public_text
from wire.envelope import decode_public_key


def test_it_is_made_once(tmp_path: Path) -> None:
    first = public_text(assignment_key(tmp_path / "keys"))
    assert public_text(assignment_key(tmp_path / "keys")) == first
    assert decode_public_key(first)
    assert (tmp_path / "keys" / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_broken_file_is_an_error_not_a_new_key(tmp_path: Path) -> None:
    assignment_key(tmp_path)
    (tmp_path / FILE_NAME).write_text("broken")
    with pytest.raises(UnavailableError):
        assignment_key(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == "broken"
