"""Which failures are tried again, how long after, and how often: without IO."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanopod.gateway.retrying import BUDGET_MIN, Budget, delay_s, matches, names_of, names_of_answer
from nanopod.model.endpoint import RetrySpec
from nanopod.model.errors import Cancelled, QueueTimeout, SessionLost, WorkerLost


def test_classes_match_by_any_ancestor_with_or_without_the_module() -> None:
    lost = names_of(WorkerLost)
    for listed in ("WorkerLost", "NanopodError", "ConnectionError", "OSError", "nanopod.model.errors.WorkerLost"):
        assert matches((listed,), lost), listed
    for other in ("SessionLost", "QueueTimeout", "Worker", "errors.WorkerLost", "object"):
        assert not matches((other,), lost), other
    assert matches(("WorkerLost",), names_of(SessionLost))
    assert matches(RetrySpec().on, names_of(QueueTimeout))
    assert not matches(("Cancelled", "NanopodError", "Exception"), names_of(Cancelled))
    assert not matches((), lost)


def test_answers_match_by_what_the_worker_names_and_by_their_code() -> None:
    types = ["deployment.Busy", "builtins.ValueError", "Exception"]
    found = names_of_answer("remote_error", types)
    for listed in ("Busy", "deployment.Busy", "ValueError", "Exception"):
        assert matches((listed,), found)
    assert not matches(("RemoteError", "KeyError"), found), "every exception has that code: it says nothing"
    assert matches(("WorkerLost",), names_of_answer("worker_lost", []))
    assert matches(("TimeoutError",), names_of_answer("call_timeout", []))


@given(
    st.floats(0, 100), st.floats(0.5, 10), st.floats(0, 500), st.integers(0, 5000), st.floats(0, 1, exclude_max=True)
)
def test_delays_grow_to_a_limit_and_jitter_stays_below_it(
    first: float, factor: float, cap: float, retried: int, draw: float
) -> None:
    steady = RetrySpec(3, first, factor, cap, jitter=False)
    assert 0 <= delay_s(steady, retried, draw) <= cap
    assert delay_s(RetrySpec(3, first, factor, cap), retried, draw) <= delay_s(steady, retried, draw)
    assert delay_s(steady, 0, draw) == min(first, cap)


def test_budget_is_a_tenth_of_a_minute_and_never_less_than_ten() -> None:
    budget = Budget()
    assert [budget.take(1000.0) for _ in range(BUDGET_MIN + 1)] == [True] * BUDGET_MIN + [False]
    for _ in range(200):
        budget.called(1030.0)
    taken = sum(budget.take(1030.5) for _ in range(50))
    assert taken == 10, "two hundred calls allow twenty retries, ten of which are used"
    assert sum(budget.take(1061.0) for _ in range(50)) == 10, "the first ten are more than a minute ago"
    assert sum(budget.take(1095.0) for _ in range(50)) == 0, "those of a moment ago still count, the calls do not"
    assert sum(budget.take(9000.0) for _ in range(50)) == BUDGET_MIN


@given(st.lists(st.tuples(st.integers(0, 90), st.booleans()), max_size=80))
def test_budget_equals_a_plain_list_of_what_happened(steps: list[tuple[int, bool]]) -> None:
    budget = Budget()
    now, called, retried = 500, [], []
    for after, retry in steps:
        now += after
        if retry:
            recent = sum(at > now - 60 for at in retried)
            allowed = recent < max(BUDGET_MIN, sum(at > now - 60 for at in called) // 10)
            assert budget.take(float(now)) == allowed
            if allowed:
                retried.append(now)
        else:
            budget.called(float(now))
            called.append(now)
