from __future__ import annotations

import pytest

from controller.errors import ConflictError, InvalidError
from controller.listening import listen


def test_a_taken_port_is_named_with_the_setting_to_change() -> None:
    first = listen("127.0.0.1", 0, "MUSTER_API_PORT")
    port = first.getsockname()[1]
    with pytest.raises(ConflictError, match=rf"{port}.*MUSTER_API_PORT") as caught:
        listen("127.0.0.1", port, "MUSTER_API_PORT")
    assert caught.value.code == "port_taken"
    first.close()
    listen("127.0.0.1", port, "MUSTER_API_PORT").close()


def test_what_is_no_address_is_said_so() -> None:
    with pytest.raises(InvalidError, match=r"no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0, "MUSTER_API_PORT")
