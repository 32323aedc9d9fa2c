from __future__ import annotations

import resource

import pytest

from controller.errors import ConflictError, InvalidError
from controller.listening import allow_connections, listen


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


def test_a_process_may_hold_as_many_sockets_as_the_system_lets_it() -> None:
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
        assert allow_connections(400) == 500
        assert allow_connections(600) == 600
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (600, hard)
        if hard != resource.RLIM_INFINITY:
            assert allow_connections(hard + 1) == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert soft == before[0]
