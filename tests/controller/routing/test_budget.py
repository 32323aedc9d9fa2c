"""Who may hold how many bytes: pure counting."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.routing.budget import Budget


def test_one_tenant_leaves_room_for_the_next():
    budget = Budget(1000)
    assert budget.take("a", 750)
    assert not budget.take("a", 1)
    assert budget.take("b", 187)
    assert not budget.take("b", 1)
    assert budget.take("c", 40)
    budget.give("a", 750)
    assert budget.take("b", 500)
    assert budget.used == 727


def test_nothing_always_fits():
    budget = Budget(100)
    assert budget.take("a", 75)
    assert budget.take("a", 0)


_STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.booleans()), max_size=40)


@settings(max_examples=100, deadline=None)
@given(steps=_STEPS)
def test_the_limit_holds_and_what_is_given_back_is_free(steps):
    budget, held = Budget(100), []
    for tenant, size, back in steps:
        if back and held:
            budget.give(*held.pop())
        elif budget.take(tenant, size):
            held.append((tenant, size))
        assert budget.used == sum(size for _, size in held) <= 100
    for one in held:
        budget.give(*one)
    assert budget.used == 0
    assert budget.take("d", 75)
