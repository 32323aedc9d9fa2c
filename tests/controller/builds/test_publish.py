"""The builder vouches for builds: it adds to its own words alone, and keeps them fresh."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from tuf.api.metadata import Targets

from controller.builds.publish import Entry, Vouching
from controller.builds.sign import builder_key
from controller.errors import ConflictError, DeniedError, InvalidError
from controller.trust import layout, metadata, repository
from controller.trust import store as trust_store
from wire.envelope import decode_public_key

if TYPE_CHECKING:
    from tests.controller.builds.conftest import Site

PROFILE = "generic-x86_64"
NOW = time.time()


class Direct:
    """The repository of tenant "acme" without HTTP; ``before`` runs once before a hand-in: somebody else was first."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.before: list[Any] = []
        self.handed: list[dict[str, bytes]] = []

    async def role(self, tenant: str, role: str) -> bytes | None:
        with self.site.database.read() as connection:
            return trust_store.newest(connection, tenant, role)

    async def hand_in(self, roles: Any) -> None:
        if self.before:
            await self.before.pop()()
        keeper = self.site.app.state.keeper
        with self.site.database.begin() as connection:
            repository.take_roles(connection, "acme", roles, lambda *_: True, keeper.online("acme"), NOW)
        self.handed.append(dict(roles))


def entry(number: int, model: str = "digits") -> Entry:
    return Entry(PROFILE, model, f"b-{number:032x}", b"envelope %d" % number, {"version": number})


def held(site: Site, one: Entry) -> Any:
    with site.database.read() as connection:
        return repository.vouched(connection, "acme", one.path)


async def test_builds_are_added_and_found_by_their_path(site: Site) -> None:
    api = Direct(site)
    vouching = Vouching(api, site.key)
    await vouching.add("acme", PROFILE, [entry(1), entry(2)], NOW)
    await vouching.add("acme", PROFILE, [entry(3)], NOW)
    for number in (1, 2, 3):
        found = held(site, entry(number))
        assert found.hashes == {"sha256": hashlib.sha256(entry(number).envelope).hexdigest()}
        assert found.custom == {"version": number}
    assert held(site, entry(4)) is None
    await vouching.add("acme", PROFILE, [entry(2)], NOW)
    assert len(api.handed) == 2, "what is there already is not signed again: an answer may have been lost"


async def test_who_comes_second_reads_again_and_both_are_there(site: Site) -> None:
    api = Direct(site)
    first = Vouching(api, site.key)

    async def other() -> None:
        await Vouching(Direct(site), site.key).add("acme", PROFILE, [entry(2)], NOW)

    api.before = [other]
    await first.add("acme", PROFILE, [entry(1)], NOW)
    assert held(site, entry(1)) is not None
    assert held(site, entry(2)) is not None


async def test_what_others_signed_is_not_built_upon(site: Site) -> None:
    api = Direct(site)
    await Vouching(api, site.key).add("acme", PROFILE, [entry(1)], NOW)
    stranger = Vouching(api, builder_key(site.data / "stranger"))
    with pytest.raises(DeniedError, match="not signed by this builder"):
        await stranger.add("acme", PROFILE, [entry(2)], NOW)


async def test_a_builder_that_takes_anothers_place_signs_its_words_again_at_once(site: Site) -> None:
    api, keeper = Direct(site), site.app.state.keeper
    await Vouching(api, site.key).add("acme", PROFILE, [entry(1)], NOW)
    old, new = site.key, builder_key(site.data / "new")
    both = tuple(decode_public_key(one.public) for one in (old, new))
    site.app.state.keeper = dataclasses.replace(keeper, builders=both)
    site.app.state.keeper.keep("acme", NOW)
    successor = Vouching(api, new, [decode_public_key(old.public)])
    assert await successor.renew("acme", PROFILE, NOW)
    assert not await successor.renew("acme", PROFILE, NOW)
    await Vouching(api, new).add("acme", PROFILE, [entry(2)], NOW)  # needs the old key no more
    assert held(site, entry(1)) is not None


async def test_nobody_but_the_builder_adds_and_nothing_is_taken_away(site: Site) -> None:
    api = Direct(site)
    with pytest.raises(DeniedError, match="0 of the keys"):
        await Vouching(api, builder_key(site.data / "stranger")).add("acme", PROFILE, [entry(1)], NOW)
    await Vouching(api, site.key).add("acme", PROFILE, [entry(1)], NOW)
    data = await api.role("acme", PROFILE)
    assert data is not None
    without = metadata.read(data, Targets).signed
    without.targets.clear()
    with pytest.raises(ConflictError, match="taken away"):
        await api.hand_in({PROFILE: Vouching(api, site.key)._sign(PROFILE, without, NOW)})
    assert held(site, entry(1)) is not None


async def test_a_path_of_another_profile_is_refused(site: Site) -> None:
    api = Direct(site)
    role = metadata.new_role(PROFILE, NOW)
    path = layout.target_path("raspberry_pi", "digits", "b-" + "0" * 32)
    role.targets[path] = metadata.target(path, b"x", {})
    with pytest.raises(Exception, match="cannot vouch for"):
        await api.hand_in({PROFILE: Vouching(api, site.key)._sign(PROFILE, role, NOW)})


async def test_what_is_said_about_a_build_is_bounded(site: Site) -> None:
    talkative = dataclasses.replace(entry(1), custom={"notes": "x" * 2000})
    with pytest.raises(InvalidError, match="at most 1024 bytes"):
        await Vouching(Direct(site), site.key).add("acme", PROFILE, [talkative], NOW)


async def test_a_file_that_is_not_here_is_not_vouched_for(site: Site) -> None:
    with pytest.raises(AssertionError, match="no_artifact"):
        await site.vouch("b-" + "0" * 32, b"never uploaded")


async def test_a_role_is_signed_again_when_half_of_its_life_is_over(site: Site) -> None:
    api = Direct(site)
    vouching = Vouching(api, site.key)
    assert not await vouching.renew("acme", PROFILE, NOW), "nothing was signed yet"
    await vouching.add("acme", PROFILE, [entry(1)], NOW - 16 * layout.DAY)
    assert await vouching.renew("acme", PROFILE, NOW)
    assert not await vouching.renew("acme", PROFILE, NOW)
    data = await api.role("acme", PROFILE)
    assert data is not None
    renewed = metadata.read(data, Targets).signed
    assert renewed.version == 2
    assert renewed.expires.timestamp() == pytest.approx(NOW + layout.DELEGATED_LIFETIME, abs=2)
    assert held(site, entry(1)) is not None


async def test_a_role_that_outgrew_one_file_goes_on_in_bins(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_FLAT", 20)
    api = Direct(site)
    vouching = Vouching(api, site.key)
    await vouching.add("acme", PROFILE, [entry(number) for number in range(15)], NOW - 16 * layout.DAY)
    await vouching.add("acme", PROFILE, [entry(number) for number in range(15, 30)], NOW - 16 * layout.DAY)
    assert len(api.handed[-1]) == 1 + 2**layout.BIN_BITS
    await vouching.add("acme", PROFILE, [entry(30)], NOW)
    assert list(api.handed[-1]) != [PROFILE], "one bin is enough"
    assert len(api.handed[-1]) == 1
    assert all(held(site, entry(number)) is not None for number in range(31))
    await vouching.add("acme", PROFILE, [entry(30)], NOW)
    assert len(api.handed) == 3
    assert await vouching.renew("acme", PROFILE, NOW)
    assert len(api.handed[-1]) == 2**layout.BIN_BITS, "the role and all bins but the one just signed"
