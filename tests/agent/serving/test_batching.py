from hypothesis import given, settings
from hypothesis import strategies as st

from agent.serving.batching import Expired, Queue, Rules, Run, Waiting, WakeAt, offer, tick, withdraw


def waiting(identity: int, items: int = 1, key: object = "a", arrived: float = 0.0, deadline: float = 100.0) -> Waiting:
    return Waiting(identity, items, 10 * items, key, arrived, deadline)  # type: ignore[arg-type]


def queue(*requests: Waiting) -> Queue:
    made = Queue()
    for request in requests:
        made = offer(made, request)
    return made


def ids(batch: tuple[Waiting, ...]) -> list[int]:
    return [request.id for request in batch]


def test_what_gathered_runs_together_up_to_the_maximum() -> None:
    left, actions = tick(queue(*(waiting(n) for n in range(5))), True, 1.0, Rules(max_batch=3))
    assert [ids(action.batch) for action in actions if isinstance(action, Run)] == [[0, 1, 2]]
    assert ids(left.waiting) == [3, 4]
    assert (left.items, left.bytes) == (2, 20)


def test_unequal_shapes_wait_for_their_own_batch() -> None:
    left, actions = tick(queue(waiting(1), waiting(2, key="b"), waiting(3)), True, 1.0, Rules(max_batch=8))
    assert [ids(action.batch) for action in actions if isinstance(action, Run)] == [[1, 3]]
    assert ids(left.waiting) == [2]


def test_a_request_that_does_not_fit_is_not_overtaken() -> None:
    _, actions = tick(queue(waiting(1, 2), waiting(2, 3), waiting(3, 1)), True, 1.0, Rules(max_batch=4))
    assert [ids(action.batch) for action in actions if isinstance(action, Run)] == [[1]]


def test_a_request_larger_than_the_maximum_runs_alone() -> None:
    _, actions = tick(queue(waiting(1, 9), waiting(2)), True, 1.0, Rules(max_batch=4))
    assert [ids(action.batch) for action in actions if isinstance(action, Run)] == [[1]]


def test_a_busy_engine_runs_nothing() -> None:
    before = queue(waiting(1))
    assert tick(before, False, 1.0, Rules(max_batch=4)) == (before, [])


def test_expired_requests_leave_also_while_the_engine_is_busy() -> None:
    left, actions = tick(queue(waiting(1, deadline=5.0), waiting(2)), False, 5.0, Rules(max_batch=4))
    assert [ids(action.requests) for action in actions if isinstance(action, Expired)] == [[1]]
    assert ids(left.waiting) == [2]


def test_delay_waits_for_company_from_the_first_arrival() -> None:
    rules = Rules(max_batch=4, max_delay=0.010)
    before = queue(waiting(1, arrived=1.0), waiting(2, arrived=1.004))
    assert tick(before, True, 1.005, rules) == (before, [WakeAt(1.010)])
    _, actions = tick(before, True, 1.010, rules)
    assert [ids(action.batch) for action in actions if isinstance(action, Run)] == [[1, 2]]


def test_delay_does_not_hold_a_full_batch() -> None:
    _, actions = tick(queue(waiting(1, 2), waiting(2, 2)), True, 0.0, Rules(max_batch=4, max_delay=9.0))
    assert [ids(action.batch) for action in actions if isinstance(action, Run)] == [[1, 2]]


def test_delay_spends_at_most_half_of_a_deadline() -> None:
    _, actions = tick(queue(waiting(1, deadline=0.004)), True, 0.0, Rules(max_batch=4, max_delay=9.0))
    assert actions == [WakeAt(0.002)]


def test_withdraw_keeps_the_same_object_when_nobody_leaves() -> None:
    before = queue(waiting(1))
    assert withdraw(before, frozenset((9,))) is before
    assert withdraw(before, frozenset((1,))) == Queue()


REQUESTS = st.lists(st.tuples(st.integers(1, 6), st.sampled_from("abc"), st.floats(0.1, 20)), min_size=1, max_size=12)


@settings(max_examples=100)
@given(REQUESTS, st.integers(1, 8), st.sampled_from([0.0, 0.5, 50.0]))
def test_every_request_runs_once_or_expires(
    requests: list[tuple[int, str, float]], max_batch: int, max_delay: float
) -> None:
    rules, now = Rules(max_batch, max_delay), 0.0
    state = queue(*(waiting(n, items, key, 0.0, end) for n, (items, key, end) in enumerate(requests)))
    by_id = {request.id: request for request in state.waiting}
    ran: list[int] = []
    expired: list[int] = []
    for _ in range(100):
        state, actions = tick(state, True, now, rules)
        if not actions:
            break
        for action in actions:
            if isinstance(action, Run):
                batch = action.batch
                assert len({request.key for request in batch}) == 1
                assert len(batch) == 1 or sum(request.items for request in batch) <= max_batch
                assert all(request.deadline > now for request in batch)
                ran += ids(batch)
            elif isinstance(action, Expired):
                assert all(request.deadline <= now for request in action.requests)
                expired += ids(action.requests)
            else:
                assert action.instant > now
                now = action.instant
        assert state.items == sum(request.items for request in state.waiting)
        now += 0.01
    assert sorted(ran + expired) == sorted(by_id)
    for key in "abc":
        order = [identity for identity in ran if by_id[identity].key == key]
        assert order == sorted(order)
