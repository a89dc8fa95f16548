"""Activations: no signal is lost, nothing is held twice, a lost lease writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

Run = Callable[[Callable[[GroupStore], Any]], Any]
KIND, KEY = "endpoint", "e1"


def test_claimed_once_and_given_back(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def story(write: Transaction) -> None:
            write.signal(KIND, KEY, 10.0)
            assert write.claim(KIND, "t1", "me", 9.0, 30) == [], "not due yet"
            assert write.claim(KIND, "t1", "me", 10.0, 30) == [(KEY, 0, 0)]
            assert write.claim(KIND, "t2", "you", 11.0, 30) == [], "held"
            assert write.finish(KIND, KEY, "t1", 0, 12.0, 27.0) == 27.0
            assert write.claim(KIND, "t2", "you", 26.0, 30) == []
            assert write.claim(KIND, "t2", "you", 27.0, 30) == [(KEY, 0, 0)]

        await store.write(story)

    with_store(test)


def test_a_signal_during_the_work_makes_it_due_at_once(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def story(write: Transaction) -> None:
            write.signal(KIND, KEY, 1.0)
            write.claim(KIND, "t1", "me", 1.0, 30)
            write.signal(KIND, KEY, 2.0)
            assert write.finish(KIND, KEY, "t1", 0, 3.0, 100.0) == 3.0
            assert write.claim(KIND, "t2", "me", 3.0, 30) == [(KEY, 1, 0)]

        await store.write(story)

    with_store(test)


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_writes_nothing(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def story(write: Transaction) -> None:
            write.signal(KIND, KEY, 1.0)
            write.claim(KIND, "t1", "me", 1.0, 30)
            assert write.claim(KIND, "t2", "you", 31.5, 30) == [(KEY, 0, 0)]
            assert write.finish(KIND, KEY, "t1", 0, 32.0, 100.0) is None
            assert write.finish(KIND, KEY, "t2", 0, 33.0, 100.0, fails=2) == 100.0
            assert write.claim(KIND, "t3", "you", 100.0, 30) == [(KEY, 0, 2)]

        await store.write(story)

    with_store(test)


def test_what_is_gone_is_dropped_unless_it_was_signalled(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def story(write: Transaction) -> None:
            write.signal(KIND, KEY, 1.0)
            write.claim(KIND, "t1", "me", 1.0, 30)
            write.signal(KIND, KEY, 2.0)
            write.drop(KIND, KEY, "t1", 0)
            assert write.finish(KIND, KEY, "t1", 0, 2.0, 50.0) == 2.0, "it is still there"
            write.claim(KIND, "t2", "me", 2.0, 30)
            write.drop(KIND, KEY, "t2", 1)
            assert write.claim(KIND, "t3", "me", 1000.0, 30) == []

        await store.write(story)

    with_store(test)


def test_a_new_process_takes_back_what_the_dead_one_held(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def story(write: Transaction) -> None:
            write.signal(KIND, KEY, 1.0)
            write.claim(KIND, "t1", "old", 1.0, 30)
            write.release_others("new")
            assert write.claim(KIND, "t2", "new", 1.0, 30) == [(KEY, 0, 0)]

        await store.write(story)

    with_store(test)


def test_batches_are_bounded_and_oldest_first(with_store: Run) -> None:
    async def test(store: GroupStore) -> None:
        def story(write: Transaction) -> None:
            for number in range(30):
                write.signal(KIND, f"k{number:02d}", 100.0 - number)
            claimed = write.claim(KIND, "t1", "me", 200.0, 30, 20)
            assert len(claimed) == 20
            assert {key for key, _, _ in claimed} == {f"k{number:02d}" for number in range(10, 30)}

        await store.write(story)

    with_store(test)
