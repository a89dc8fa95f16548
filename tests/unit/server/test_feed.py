"""The feed of events: everybody hears his own, in order, and who is too slow is told to look in the store."""

from __future__ import annotations

import asyncio

from nanopod.model.chain import Event
from nanopod.server.feed import QUEUE_EVENTS_MAX, NewsFeed


def event(seq: int, workspace_id: str = "wksp_a") -> Event:
    return Event(seq, 1.0, workspace_id, "order.created", f"ordr_{seq}", {})


def test_listeners_hear_their_workspace_in_order() -> None:
    feed = NewsFeed()
    with feed.listen("wksp_a") as own, feed.listen(None) as every:
        feed.publish([event(1), "not an event", event(2, "wksp_b"), event(3)])
        assert [one.seq for one in own.take()[0]] == [1, 3]
        assert [one.seq for one in every.take()[0]] == [1, 2, 3]
        assert own.take() == ([], False)
    feed.publish([event(4)])
    assert own.take() == ([], False), "one that left hears nothing"


def test_one_that_does_not_keep_up_is_sent_to_the_store() -> None:
    feed = NewsFeed()
    with feed.listen("wksp_a") as slow:
        feed.publish(event(seq) for seq in range(QUEUE_EVENTS_MAX + 5))
        assert slow.take() == ([], True)
        feed.publish([event(9_999)])
        assert ([one.seq for one in slow.take()[0]]) == [9_999]


def test_waiting_ends_with_news_with_time_and_with_the_server() -> None:
    async def main() -> None:
        feed = NewsFeed()
        with feed.listen("wksp_a") as listener:
            assert await listener.wait(0.01) is False
            feed.publish([event(1)])
            assert await listener.wait(1.0) is True
            listener.take()
            feed.close()
            assert await listener.wait(1.0) is True
            assert listener.closed
        with feed.listen("wksp_a") as late:
            assert late.closed

    asyncio.run(main())
