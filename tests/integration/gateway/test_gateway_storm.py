"""Ten thousand calls, most of them cancelled at random moments: each is answered once, and nothing is left."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter

import pytest
from stage import Caller, Stage, until
from test_gateway_calls import args, call

from nanopod.model import calls, websocket

pytestmark = pytest.mark.integration
COUNT = 10_000


def test_ten_thousand_random_cancellations_leave_nothing(stage: Stage) -> None:
    stage.start()
    for instance in ("inst_1", "inst_2"):
        stage.worker("endp_fn", instance)
    caller = Caller(stage)
    rng = random.Random(7)
    answered: Counter[bytes] = Counter()
    codes: Counter[str] = Counter()
    ids = [os.urandom(16) for _ in range(COUNT)]
    wanted = set(ids)

    def read() -> None:
        while len(answered) < COUNT:
            header, _ = caller.next(60)
            if header.id in wanted and isinstance(header, (calls.Result, calls.Error)):
                answered[header.id] += 1
                codes[header.code if isinstance(header, calls.Error) else "ok"] += 1

    reader = threading.Thread(target=read)
    reader.start()
    events = []
    for index, call_id in enumerate(ids):
        payload = args(rng.choice((0.0, 0.001, 0.02)))
        header = calls.Call(call_id, "maths", "sleep", size=len(payload), priority=rng.randrange(3))
        events.append((float(index), calls.encode(header, payload)))
        if rng.random() < 0.9:
            events.append((index + rng.expovariate(0.001), calls.encode(calls.Cancel(call_id))))
    events.sort(key=lambda event: event[0])
    batch = b""
    for _, frame in events:
        batch += websocket.encode(websocket.BINARY, frame, os.urandom(4))
        if len(batch) > 4096:
            caller.sock.sendall(batch)
            batch = b""
    caller.sock.sendall(batch)
    reader.join(100)
    assert not reader.is_alive(), f"{COUNT - len(answered)} calls were never answered"
    assert set(answered) == wanted
    assert set(codes) == {"ok", "cancelled"}
    assert codes["ok"] > COUNT // 20
    until(lambda: stage.health()["in_flight"] == 0, what="nothing left")
    # Every slot of the function is free again.
    after = {call(caller, "sleep", 0.0) for _ in range(8)}
    while after:
        header, _ = caller.next()
        assert header.id not in wanted, "a second answer"
        if isinstance(header, calls.Result):
            after.discard(header.id)
    caller.close()
