"""What holds for the autoscaler whatever happens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopod.scheduler.autoscale import restart
from nanopod.scheduler.autoscale.engine import decide, replay, step
from nanopod.scheduler.autoscale.replan import replan
from nanopod.scheduler.autoscale.settings import PROFILES
from nanopod.scheduler.autoscale.values import (
    UNKNOWN,
    Action,
    Autoscale,
    Decision,
    Observed,
    Replica,
    ScaleState,
    Second,
)

BEGIN = 1_800_000_000


def changed(spec: Autoscale, **values: object) -> Autoscale:
    return msgspec.structs.replace(spec, **values)


specs = st.builds(
    changed,
    st.sampled_from([PROFILES["auto"], PROFILES["vast"], PROFILES["knative"], PROFILES["coreweave"]]),
    container_concurrency=st.sampled_from([1, 4]),
    concurrency_total=st.sampled_from([1.0, 4.0]),
    min_scale=st.sampled_from([0, 0, 2, 6]),
    max_scale=st.sampled_from([0, 3, 8]),
    stable_s=st.sampled_from([12, 30, 60]),
    delay_s=st.sampled_from([0, 6, 40]),
    retention_s=st.sampled_from([0.0, 21.0, 90.0]),
    initial_scale=st.sampled_from([1, 3]),
)
own_specs = st.builds(
    changed,
    st.sampled_from([PROFILES["auto"], PROFILES["vast"]]),
    min_load=st.sampled_from([0.0, 0.0, 250.0]),
    min_scale=st.sampled_from([0, 0, 2, 6]),
    max_workers=st.sampled_from([0, 3, 12]),
    stable_s=st.sampled_from([12, 60]),
    delay_s=st.sampled_from([0, 10, 40]),
    cold_workers=st.integers(0, 3),
    cold_mult=st.sampled_from([1.0, 2.5]),
    inactivity_timeout_s=st.sampled_from([None, -1.0, 0.0, 7.0, 45.0]),
    zero_cuts_windows=st.booleans(),
    retention_s=st.sampled_from([None, 33.0]),
    container_concurrency=st.just(1),
    concurrency_total=st.just(1.0),
)
every_spec = st.one_of(specs, own_specs)


@dataclass
class Event:
    ticks: int
    """Ticks since the event before."""
    rate: float
    """Requests per second that arrive from then on, or 0; one takes a second."""
    seconds: int
    """For how long."""
    lost: int
    """Replicas that fail for a tick, a while after."""


events = st.lists(
    st.builds(Event, st.integers(1, 60), st.sampled_from([0.3, 1.0, 2.0, 9.0]), st.integers(1, 40), st.integers(0, 4)),
    max_size=6,
)


@dataclass
class World:
    """An endpoint whose replicas follow a decision a tick later; `parked`: only evaluated when that is due."""

    spec: Autoscale
    parked: bool
    mu: float | None
    state: ScaleState = field(default_factory=ScaleState)
    current: int = 0
    ready: int = 0
    evaluations: int = 0
    next_at: float | None = 0.0

    def tick(self, now: int, load: dict[int, float], lost: int = 0) -> Decision | None:
        seconds = tuple(
            Second(at, concurrency=load[at], requests=load[at], load=100.0 * load[at])
            for at in range(now - self.spec.tick_s, now)
            if at in load
        )
        before, self.ready = self.ready, max(0, self.current - lost)
        moved = self.ready != before
        if self.parked and not seconds and not moved and (self.next_at is None or now < self.next_at):
            return None
        self.evaluations += 1
        seen = Observed(seconds=seconds, ready=self.ready, current=self.current, mu=self.mu, wake_s=3.0)
        decision = step(self.spec, self.state, seen, float(now))
        self.next_at = decision.next_at
        if decision.patch:
            self.current = decision.want
        return decision

    def outcome(self) -> tuple[int, int, str, float, int]:
        return self.current, self.ready, self.state.active, self.state.active_since, self.state.cold


def load_of(story: list[Event], tick: int) -> tuple[dict[int, float], dict[int, int], int]:
    """({second: requests at once}, {tick: replicas that fail}, end); a quiet second is not there."""
    load: dict[int, float] = {}
    losses: dict[int, int] = {}
    at = BEGIN
    for event in story:
        at += event.ticks * tick
        for second in range(at, at + event.seconds):
            load[second] = event.rate
        losses[(at + 100) // tick * tick] = event.lost
    return load, losses, at + 400


@given(every_spec, events, st.sampled_from([None, 100.0]))
@settings(max_examples=200, deadline=None)
def test_parked_and_ticked_agree(spec: Autoscale, story: list[Event], mu: float | None) -> None:
    load, losses, end = load_of(story, spec.tick_s)
    ticked, parked = World(spec, False, mu), World(spec, True, mu)
    for now in range(BEGIN, end, spec.tick_s):
        lost = losses.get(now, 0)
        expected, found = ticked.tick(now, load, lost), parked.tick(now, load, lost)
        assert parked.outcome() == ticked.outcome(), f"at {now - BEGIN}"
        if found is not None and expected is not None:
            assert (found.want, found.desired, found.valid) == (expected.want, expected.desired, expected.valid)
    assert parked.evaluations <= ticked.evaluations


@given(every_spec, st.sampled_from([None, 100.0]))
@settings(max_examples=30, deadline=None)
def test_an_idle_endpoint_comes_to_rest(spec: Autoscale, mu: float | None) -> None:
    world = World(spec, True, mu)
    for now in range(BEGIN, BEGIN + 4000, spec.tick_s):
        world.tick(now, {BEGIN + 5: 3.0})
    assert world.next_at is None, "nothing is left that time alone could change"
    before = world.evaluations
    for now in range(BEGIN + 4000, BEGIN + 8000, spec.tick_s):
        world.tick(now, {})
    assert world.evaluations == before


moments = st.lists(
    st.tuples(
        st.integers(1, 9),  # seconds until then
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0, 25.0]), max_size=4),  # concurrency of the newest seconds
        st.integers(0, 3),  # waiting
        st.integers(0, 8),  # ready
        st.integers(0, 3),  # starting
        st.booleans(),  # a gateway is linked
    ),
    min_size=1,
    max_size=50,
)
Moment = tuple[int, list[float], int, int, int, bool]


def seen_of(now: float, moment: Moment, mu: float | None) -> Observed:
    _, values, waiting, ready, starting, linked = moment
    seconds = tuple(
        Second(int(now) - len(values) + i, concurrency=value, requests=value, load=value * 100.0)
        for i, value in enumerate(values)
    )
    return Observed(
        seconds=seconds,
        waiting=waiting,
        ready=ready,
        starting=starting,
        linked=linked,
        mu=mu,
        eta_s=5.0 if starting else None,
    )


def story_of(story: list[Moment], mu: float | None) -> list[tuple[float, Observed]]:
    found, now = [], BEGIN + 0.0
    for moment in story:
        now += moment[0]
        found.append((now, seen_of(now, moment, mu)))
    return found


@given(every_spec, moments, st.sampled_from([None, 40.0]))
@settings(max_examples=200, deadline=None)
def test_bounds_purity_and_replay(spec: Autoscale, story: list[Moment], mu: float | None) -> None:
    stream = story_of(story, mu)
    state = ScaleState()
    decisions = []
    for now, seen in stream:
        before = restart.dump(state)
        after, decision = decide(spec, state, seen, now)
        assert restart.dump(state) == before, "the state that was given is left alone"
        assert restart.dump(restart.load(restart.dump(after))) == restart.dump(after)
        state = after
        decisions.append(decision)
        high = spec.hot_max
        low = max(spec.min_scale, spec.initial_scale)
        if high and decision.want > high:
            assert spec.exact or not seen.linked or decision.want <= low
        if decision.patch:
            assert decision.want != UNKNOWN
        assert decision.next_at is None or decision.next_at > now
        if spec.max_workers and decision.cold:
            assert max(decision.want, 0) + decision.cold <= spec.max_workers
        if not spec.exact and seen.waiting and decision.want != UNKNOWN:
            assert decision.want >= 1
    twice, again = replay(spec, ScaleState(), stream)
    assert again == decisions
    assert restart.dump(twice) == restart.dump(state)


@given(own_specs, moments)
@settings(max_examples=150, deadline=None)
def test_no_flap_within_the_delay(spec: Autoscale, story: list[Moment]) -> None:
    """What was asked for stays for the delay, unless idle time or a timeout says otherwise."""
    spec = changed(spec, zero_cuts_windows=False, inactivity_timeout_s=-1.0, max_workers=0)
    asked: list[tuple[float, int]] = []
    state = ScaleState()
    for now, seen in story_of(story, 50.0):
        decision = step(spec, state, seen, now)
        if decision.valid and decision.want != UNKNOWN:
            since = (int(now) // spec.tick_s - math.ceil(spec.delay_s / spec.tick_s) + 1) * spec.tick_s
            held = [wish for at, wish in asked if at >= since and at <= now] if spec.delay_s else []
            assert decision.desired >= max(held, default=0)
            asked.append((now, decision.recommended))


@given(every_spec, moments, st.integers(0, 49), st.integers(0, 12), st.sampled_from([None, 60.0]))
@settings(max_examples=200, deadline=None)
def test_a_restart_changes_nothing_once_samples_are_sent_again(
    spec: Autoscale, story: list[Moment], stored_at: int, missed: int, mu: float | None
) -> None:
    """A run on ticks is stored at one, is away for some, and goes on: with the samples of the meantime it is the same."""
    tick = spec.tick_s
    ticks = []
    for index, (_, values, *_rest) in enumerate(story):
        now = float((BEGIN // tick + 1 + index) * tick)
        seconds = tuple(
            Second(int(now) - len(values) + i, concurrency=value, requests=value, load=value * 100.0)
            for i, value in enumerate(values)
            if int(now) - len(values) + i >= now - tick
        )
        ticks.append((now, Observed(seconds=seconds, ready=2, current=2, mu=mu)))
    stored_at = min(stored_at, len(ticks) - 1)
    back_at = stored_at + 1 + missed
    state = ScaleState()
    kept = ""
    expected = []
    for index, (now, seen) in enumerate(ticks):
        expected.append(step(spec, state, seen, now))
        if index == stored_at:
            kept = restart.dump(state)
    if back_at >= len(ticks):
        return
    resumed = restart.restore(spec, restart.load(kept), 2, ticks[back_at][0])
    resent = tuple(second for _, seen in ticks[stored_at + 1 : back_at + 1] for second in seen.seconds)
    for index in range(back_at, len(ticks)):
        now, seen = ticks[index]
        if index == back_at:
            seen = msgspec.structs.replace(seen, seconds=resent)
        assert step(spec, resumed, seen, now) == expected[index]
    assert restart.dump(resumed) == restart.dump(state)


@given(every_spec, st.integers(1, 9), st.floats(0.5, 30.0), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_without_samples_nothing_is_decreased_in_a_panic_window(
    spec: Autoscale, ready: int, concurrency: float, away: int
) -> None:
    state, now = ScaleState(), BEGIN + 0.0
    known = ready
    for _ in range(20):
        now += spec.tick_s
        seconds = tuple(
            Second(int(now) - i, concurrency=concurrency, requests=1.0, load=100.0) for i in range(spec.tick_s, 0, -1)
        )
        decision = step(spec, state, Observed(seconds=seconds, ready=ready, current=ready, in_service=1), now)
        known = decision.want if decision.want != UNKNOWN else known
    panicked = state.panic_since is not None
    now += away
    state = restart.restore(spec, restart.load(restart.dump(state)), ready, now)
    assert (state.panic_since is not None) == panicked, "a restart is no panic"
    end = now + spec.panic_s
    while now < end:
        decision = step(spec, state, Observed(ready=ready, current=ready, caught_up=False), now)
        assert decision.want >= known
        now += 1.0


replicas = st.lists(
    st.builds(
        Replica,
        id=st.uuids().map(str),
        phase=st.sampled_from(
            [
                "provisioning",
                "loading",
                "benchmarking",
                "ready",
                "ready",
                "ready",
                "draining",
                "cold",
                "waking",
                "failed",
            ]
        ),
        in_flight=st.integers(0, 3),
        prefix=st.sampled_from([0.0, 0.5]),
        price=st.sampled_from([0.0, 1.0]),
        born_at=st.floats(BEGIN - 300.0, BEGIN),
        eta_s=st.sampled_from([0.0, 5.0, 40.0]),
        leaving=st.sampled_from([False, False, False, True]),
        reclaimed=st.sampled_from([False, False, True]),
        filling=st.sampled_from([False, False, False, True]),
        until=st.sampled_from([None, None, BEGIN + 20.0]),
    ),
    max_size=12,
    unique_by=lambda one: one.id,
)
STARTS = ("provisioning", "loading", "benchmarking", "waking")


@given(st.integers(0, 10), st.integers(0, 4), replicas, st.booleans())
@settings(max_examples=400, deadline=None)
def test_plans(desired: int, cold: int, fleet: list[Replica], waiting: bool) -> None:
    now = float(BEGIN)
    actions = replan(desired, cold, fleet, now, waiting)
    assert actions == replan(desired, cold, list(reversed(fleet)), now, waiting), "the order of replicas says nothing"
    by_id = {one.id: one for one in fleet}
    ready = [one for one in fleet if one.phase == "ready" and not one.leaving and not one.filling]
    starts = [one for one in fleet if one.phase in STARTS and not one.leaving and not one.filling]

    def of(kind: str) -> list[Action]:
        return [one for one in actions if one.kind == kind]

    victims = {one.id for one in of("drain")}
    for victim in victims:
        stays = [one for one in ready if one.id not in victims]
        assert all(by_id[victim].in_flight <= one.in_flight for one in stays), "a busy one goes and an idler one stays"
    cancelled = {one.id for one in of("cancel")}
    if waiting and not ready and starts:
        assert len(cancelled) < len(starts), "the only start goes while requests wait"
    assert not victims or len(cancelled) == len(starts) or (waiting and not ready)
    adopted = sum(1 for one in of("keep") if by_id[one.id].filling)
    counted = len(ready) + len(starts) + len(of("undrain")) + len(of("wake")) + len(of("provision")) + adopted
    counted -= len(victims) + len(cancelled)
    kept = 1 if waiting and not ready and starts and desired == 0 else 0
    assert counted == max(desired, kept)
    assert len({one.id for one in actions if one.id}) == len([one for one in actions if one.id])
    assert not any(by_id[one.id].reclaimed for one in of("undrain"))
    assert len(of("fill")) + len(of("trim")) <= 1
    if of("fill") or of("trim"):
        assert len(actions) == 1 and not starts and len(ready) >= desired
    asleep = sum(1 for one in fleet if one.phase in ("cold", "hibernating"))
    kept_asleep = sum(1 for one in actions if one.then == "hibernate" and one.kind in ("drain", "cancel"))
    assert kept_asleep <= max(0, cold - asleep)
    for one in of("drain"):
        replica = by_id[one.id]
        if replica.in_flight or not replica.price:
            assert one.at == now
        else:
            assert now <= one.at <= now + 60.0 + 1e-6
