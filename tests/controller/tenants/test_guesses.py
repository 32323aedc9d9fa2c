"""Wrong secrets are bounded however many addresses send them, and nobody is locked out for good."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from controller.errors import TooManyError
from controller.tenants import guesses as module
from controller.tenants.attempts import Attempts, network
from controller.tenants.guesses import MOST, MOST_KNOWN, WINDOW, Guesses


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def evaluated(guesses: Guesses, token: str, addresses: list[str]) -> int:
    """Return how many of these guesses, one from each address, were compared at all."""
    number = 0
    for address in addresses:
        try:
            guesses.check(token, address)
        except TooManyError:
            continue
        guesses.wrong(token, address)
        number += 1
    return number


def test_many_addresses_together_are_no_better_than_one() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    assert evaluated(guesses, "a", [f"203.0.113.{n}" for n in range(250)]) == MOST
    assert evaluated(guesses, "a", ["203.0.113.1"] * 250) == 0
    assert evaluated(guesses, "b", ["203.0.113.1"]) == 1, "another token is another count"
    clock.now += WINDOW
    assert evaluated(guesses, "a", [f"203.0.113.{n}" for n in range(250)]) == MOST


def test_a_stranger_does_not_lock_out_who_was_right_before_nor_this_machine() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    guesses.right("a", "198.51.100.7")
    for _ in range(5):
        evaluated(guesses, "a", [f"203.0.113.{n}" for n in range(250)])
        guesses.check("a", "198.51.100.7")
        guesses.check("a", "127.0.0.1")
        guesses.check("a", "::1")
        with pytest.raises(TooManyError, match="minute"):
            guesses.check("a", "192.0.2.9")
        clock.now += WINDOW / 2
    clock.now += WINDOW
    guesses.check("a", "192.0.2.9")


def test_guesses_from_a_known_address_are_bounded_as_well() -> None:
    guesses = Guesses(Clock())
    guesses.right("a", "198.51.100.7")
    assert evaluated(guesses, "a", ["198.51.100.7"] * 250) == MOST_KNOWN
    guesses.check("a", "192.0.2.9")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 10)
    monkeypatch.setattr(module, "MAX_KNOWN", 5)
    guesses = Guesses(Clock())
    for number in range(100):
        guesses.wrong(f"t{number}", "203.0.113.1")
        guesses.right("t", f"198.51.100.{number}")
    assert len(guesses._tokens) <= 10
    assert len(guesses._tokens["t"].known) == 5
    assert evaluated(guesses, "t", ["198.51.100.99"] * 500) == MOST_KNOWN


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::1", "::1"),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_network_are_one(address: str, counted: str) -> None:
    assert network(at(address)) == counted


def at(address: str) -> HTTPConnection:
    return HTTPConnection({"type": "http", "client": (address, 1), "headers": []})


def test_one_network_has_one_count_of_attempts() -> None:
    attempts = Attempts(per_minute=3)
    for number in range(3):
        attempts.count("login", at(f"2001:db8::{number}"))
    with pytest.raises(TooManyError):
        attempts.count("login", at("2001:db8::ffff"))
    attempts.count("login", at("2001:db8:0:1::1"))
