"""Rows of the chain, of nodes, keys and usage: look-ups, guards, limits, exactly-once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from nanopod.model.capacity import Capacity, Node, Sku
from nanopod.model.chain import Deployment, Instance, Key, Workspace
from nanopod.model.endpoint import EndpointSpec, Failure, FunctionSpec, ModelSpec, ScaleSpec
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.wire import MeterRecord
from nanopod.store import chain, endpoints
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

Run = Callable[[Callable[[GroupStore], Any]], Any]
SPEC = EndpointSpec(
    "square", functions=(FunctionSpec("square", concurrency=3),), bundle="0" * 64, scale=ScaleSpec(max_workers=2)
)


def in_transaction(with_store: Run, fn: Callable[[Transaction], Any]) -> Any:
    async def test(store: GroupStore) -> Any:
        def prepared(write: Transaction) -> Any:
            write.add_workspace(Workspace("w1", "default", "a1", 1.0))
            write.add_capacity(Capacity("c1", "w1", "default"), 1.0)
            return fn(write)

        return await store.write(prepared)

    return with_store(test)


def endpoint(write: Transaction, id: str = "e1", spec: EndpointSpec = SPEC, now: float = 5.0) -> None:
    write.add_endpoint(id, "w1", spec, f"r-{id}", now)
    write.add_revision(f"r-{id}", id, spec, now)
    name = f"{spec.name}:{spec.tag}".removesuffix(":default")
    write.add_deployment(Deployment(f"d-{id}", id, "w1", "c1", f"r-{id}", 0, 0, (), 0, 0.0, now, now, name=name))


def instance(id: str, owner: Deployment, now: float, **more: Any) -> Instance:
    return Instance(
        id, owner.deployment_id, owner.endpoint_id, "w1", owner.revision_id, "c1", None, 1, 0, "run", "queued", 3, None,
        None, "", None, 0, 0.0, None, now, None, **more,
    )  # fmt: skip


def test_an_endpoint_comes_back_as_it_was_written(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        endpoint(write)
        found = write.endpoint("e1")
        assert found is not None
        assert (found.name, found.tag, found.target, found.scale, found.generation) == (
            *("square", "default", -1, SPEC.scale, 0),
        )
        revision = write.revision(found.revision_id)
        assert revision is not None
        assert revision.spec == SPEC
        assert revision.number == 1
        write.set_revision("r-e1", failures=2, failure=Failure("import", "no module"))
        again = write.revision("r-e1")
        assert again is not None
        assert again.failure == Failure("import", "no module")

    in_transaction(with_store, test)


def test_names_and_tags_find_an_endpoint(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        endpoint(write, "e1")
        endpoint(write, "e2", replace(SPEC, tag="dev"))
        endpoint(write, "e3", replace(SPEC, name="only", tag="dev"))
        found = {
            reference: getattr(write.endpoint_named("w1", reference), "endpoint_id", None)
            for reference in ("square", "square:dev", "square:default", "e2", "only", "only:dev", "only:x", "nothing")
        }
        assert found == {
            "square": "e1", "square:dev": "e2", "square:default": "e1", "e2": "e2", "only": "e3", "only:dev": "e3",
            "only:x": None, "nothing": None,
        }  # fmt: skip
        assert write.endpoint_named("w2", "e1") is None

    in_transaction(with_store, test)


def test_a_name_is_taken_until_its_endpoint_is_deleted(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        endpoint(write, "e1")
        with pytest.raises(IntegrityError), write.part():
            endpoint(write, "e2")
        found = write.endpoint("e1")
        assert found is not None
        write.set_endpoint(found, deleted_at=9.0)
        endpoint(write, "e3")
        assert [e.endpoint_id for e in write.endpoints("w1")] == ["e3"]
        write.purge_endpoint("e1")
        assert write.revision("r-e1") is None
        assert write.deployment_of("e1") is None

    in_transaction(with_store, test)


def test_a_stale_generation_loses(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        endpoint(write)
        seen = write.endpoint("e1")
        assert seen is not None
        write.set_endpoint(seen, target=1)
        with pytest.raises(Conflict, match="changed meanwhile"):
            write.set_endpoint(seen, target=2)
        found = write.endpoint("e1")
        assert found is not None
        assert (found.target, found.generation) == (1, 1)

    in_transaction(with_store, test)


def test_a_model_id_has_one_owner(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        spec = EndpointSpec("m", kind="model", model=ModelSpec("org/model", source="x"))
        endpoint(write, "e1", spec)
        owner = write.model_owner("w1", "org/model")
        assert owner is not None
        assert owner.endpoint_id == "e1"
        write.set_endpoint(owner, deleted_at=2.0)
        assert write.model_owner("w1", "org/model") is None

    in_transaction(with_store, test)


def test_instances_page_newest_first_and_history_is_short(with_store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ENDED_KEPT_MAX", 3)

    def test(write: Transaction) -> None:
        endpoint(write)
        owner = write.deployment("d-e1")
        assert owner is not None
        for number in range(6):
            write.add_instance(instance(f"i{number}", owner, float(number)))
        first = write.instances_page("w1", 2, None)
        assert [i.instance_id for i in first] == ["i5", "i4"]
        assert [i.instance_id for i in write.instances_page("w1", 10, "i4")] == ["i3", "i2", "i1", "i0"]
        for number in range(5):
            seen = write.instance(f"i{number}")
            assert seen is not None
            write.set_instance(seen, ended_at=100.0 + number, phase="ended")
        write.forget_ended("e1")
        assert [i.instance_id for i in write.instances_of("e1", ended=True)] == ["i2", "i3", "i4", "i5"]
        assert [i.instance_id for i in write.instances_live()] == ["i5"]

    in_transaction(with_store, test)


def test_instances_of_a_machine(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        endpoint(write)
        owner = write.deployment("d-e1")
        assert owner is not None
        write.put_sku(Sku("s1", "cpu"))
        write.put_node(Node("n1", "m1", "s1", 4), "boot", "0", {"vcpus": 2}, 7.0)
        write.put_node(Node("n2", "m2", "s1", 4), "boot", "0", {}, 7.0)
        for number, node_id in enumerate(("n1", "n2", None)):
            write.add_instance(instance(f"i{number}", owner, 1.0))
            seen = write.instance(f"i{number}")
            assert seen is not None
            write.set_instance(seen, node_id=node_id)
        assert [i.instance_id for i in write.instances_on("m1")] == ["i0"]
        write.put_node(Node("n1", "m1", "s1", 8, "up"), "boot2", "1", {}, 9.0)
        facts = write.node_facts()[0]
        assert (facts.node.slots, facts.boot_id, facts.created_at) == (8, "boot2", 7.0)

    in_transaction(with_store, test)


def test_stories_are_bounded(with_store: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "EVENTS_KEPT_MAX", 5)

    def test(write: Transaction) -> None:
        endpoint(write)
        for number in range(100):
            write.tell("endpoint", "e1", "e1", f"line {number}", float(number))
        story = write.story("e1", 100)
        assert story[0] == (99.0, "endpoint", "e1", "line 99")
        assert len(story) <= 5 + endpoints.PRUNE_EACH

    in_transaction(with_store, test)


def test_capacities_are_guarded(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        seen = write.capacity("c1")
        assert seen is not None
        write.set_capacity(seen, name="main", tags={"team": "a"}, updated_at=3.0)
        found = write.capacity_named("w1", "main")
        assert found is not None
        assert (found.tags, found.by_sku, found.updated_at, found.generation) == ({"team": "a"}, {}, 3.0, 1)
        with pytest.raises(Conflict):
            write.set_capacity(seen, name="other")
        write.delete_capacity("c1")
        assert write.capacity("c1") is None

    in_transaction(with_store, test)


def test_keys_are_used_to_the_minute_and_revoked(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        write.add_key(Key("k1", "w1", "mine", "d1", ("call",), ("square",), 1.0, None, None, None))
        assert "tables" in write.hints
        write.key_used("k1", 150.0)
        write.key_used("k1", 70.0)
        found = write.key("k1")
        assert found is not None
        assert found.last_used_at == 120.0
        assert found.endpoints == ("square",)
        write.revoke_key("k1", 200.0)
        assert write.api_keys("w1")[0].revoked_at == 200.0

    in_transaction(with_store, test)


def meter(record_id: str = "q1", **more: Any) -> MeterRecord:
    values: dict[str, Any] = {
        "record_id": record_id, "request_id": record_id, "workspace_id": "w1", "key_id": "k1", "endpoint_id": "e1",
        "revision_id": "r1", "instance_id": "i1", "kind": "chat", "status": 200, "prompt_tokens": 2,
        "completion_tokens": 4, "compute_us": 10, "t_arrival": 1.0, "t_first": 1.5, "t_end": 2.0,
    }  # fmt: skip
    return MeterRecord(**{**values, **more})


def test_a_record_counts_once_and_the_final_word_stays(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        write.put_usage([meter(status=0, completion_tokens=1, t_end=1.6)])
        write.put_usage([meter(status=0, completion_tokens=3, t_end=1.8), meter("q2")])
        assert write.usage("w1", None, None, ())[1]["completion_tokens"] == 7
        write.put_usage([meter(status=0, completion_tokens=2, t_end=1.7)])
        assert write.usage("w1", None, None, ())[1]["completion_tokens"] == 7, "an older progress record"
        write.put_usage([meter(completion_tokens=4, t_end=2.0)])
        write.put_usage([meter(status=0, completion_tokens=9, t_end=2.0)])
        write.put_usage([meter(completion_tokens=4, t_end=2.0), meter("q2")])
        rows = write.usage_records("w1", 10)
        assert [(r.record_id, r.status, r.completion_tokens) for _, r in rows] == [("q2", 200, 4), ("q1", 200, 4)]

    in_transaction(with_store, test)


def test_usage_is_summed_by_group_and_window(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        write.put_usage(
            [
                meter("a", t_end=86400.0 - 1),
                meter("b", t_end=86400.0, endpoint_id="e2", kind="call"),
                meter("c", t_end=86400.0 + 5, workspace_id="other"),
            ]
        )
        rows, total = write.usage("w1", None, None, ("endpoint",))
        assert [(row["endpoint"], row["requests"]) for row in rows] == [("e1", 1), ("e2", 1)]
        assert total == {"requests": 2, "prompt_tokens": 4, "completion_tokens": 8, "compute_us": 20}
        days, _ = write.usage("w1", None, None, ("day", "kind"))
        assert [(row["day"], row["kind"]) for row in days] == [("1970-01-01", "chat"), ("1970-01-02", "call")]
        assert write.usage("w1", 86400.0, None, ())[1]["requests"] == 1
        assert write.usage("w1", None, 86400.0, ())[1]["requests"] == 1
        with pytest.raises(Invalid, match="endpoint, key, day, kind"):
            write.usage("w1", None, None, ("colour",))

    in_transaction(with_store, test)


def test_usage_records_page_stably(with_store: Run) -> None:
    def test(write: Transaction) -> None:
        write.put_usage([meter(f"q{n}") for n in range(5)])
        first = write.usage_records("w1", 2)
        write.put_usage([meter("new")])
        rest = write.usage_records("w1", 10, first[-1][0])
        assert [r.record_id for _, r in [*first, *rest]] == ["q4", "q3", "q2", "q1", "q0"]

    in_transaction(with_store, test)
