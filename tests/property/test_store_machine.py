"""Two stores on one engine against a dumb model: any sequence of writes from either, with versions as stale as they come."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.memory_engine import MemoryEngine
from support.objects import make_service, make_task

from fleet import errors
from fleet.store import Action, Kind, Store, Transaction

replace = msgspec.structs.replace
IDS = st.sampled_from(["a", "b", "c"])
NAMES = st.sampled_from(["web", "db"])
STORES = st.sampled_from([0, 1])


class StoreMachine(RuleBasedStateMachine):
    """The model: service id -> (name or None while being removed, spec_version). Reads are remembered to be replayed late."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine = MemoryEngine()
        self.model: dict[str, tuple[str, bool, int]] = {}
        self.remembered: list[Any] = []
        self.replica: dict[str, Any] = {}
        self.run(self.engine.start())
        self.stores = [self.run(Store.open(self.engine)) for _ in range(2)]
        self.feed = self.stores[0].subscribe(Kind.SERVICE, pending_max=3)

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def teardown(self) -> None:
        self.a_follower_of_the_feed_catches_up()
        for store in self.stores:
            self.run(store.close())
        self.run(self.engine.close())
        self.loop.close()

    def commit(self, store: int, tx: Transaction) -> errors.FleetError | None:
        try:
            revision = self.run(self.stores[store].commit(tx))
        except (errors.ConflictError, errors.NotFoundError) as cause:
            return cause
        self.run(asyncio.wait_for(self.stores[1 - store].wait_revision(revision), 5))
        return None

    def is_taken(self, name: str, *, by_other_than: str = "") -> bool:
        return any(n == name and not going and i != by_other_than for i, (n, going, _) in self.model.items())

    @rule(store=STORES, id_=IDS, name=NAMES)
    def create(self, store: int, id_: str, name: str) -> None:
        failure = self.commit(store, Transaction().create(make_service(name, id_=id_)).create(make_task(f"task-{id_}")))
        if id_ in self.model or self.is_taken(name):
            assert type(failure) is errors.ConflictError
            return
        assert failure is None
        self.model[id_] = (name, False, 1)

    @rule(store=STORES, id_=IDS)
    def remember(self, store: int, id_: str) -> None:
        found = self.stores[store].services.get(id_)
        if found is not None:
            self.remembered.append(found)

    @rule(store=STORES, data=st.data(), name=NAMES, going=st.booleans())
    def replace_remembered(self, store: int, data: st.DataObject, name: str, going: bool) -> None:
        if not self.remembered:
            return
        read = data.draw(st.sampled_from(self.remembered))
        current = self.stores[store].services.get(read.id)
        changed = replace(
            read, spec=replace(read.spec, name=name), pending_delete=going, spec_version=read.spec_version + 1
        )
        failure = self.commit(store, Transaction().replace(changed))
        if current is None or current.version != read.version:
            assert isinstance(failure, errors.OutOfSequenceError)
        elif not going and self.is_taken(name, by_other_than=read.id):
            assert type(failure) is errors.ConflictError
        else:
            assert failure is None
            self.model[read.id] = (name, going, read.spec_version + 1)

    @rule(store=STORES, data=st.data())
    def delete_remembered(self, store: int, data: st.DataObject) -> None:
        if not self.remembered:
            return
        read = data.draw(st.sampled_from(self.remembered))
        current = self.stores[store].services.get(read.id)
        task = self.stores[store].tasks.get(f"task-{read.id}")
        tx = Transaction().delete(read)
        if task is not None:
            tx.delete(task)
        failure = self.commit(store, tx)
        if current is None or current.version != read.version:
            assert isinstance(failure, errors.OutOfSequenceError)
        else:
            assert failure is None
            del self.model[read.id]

    @invariant()
    def tables_show_the_model(self) -> None:
        for store in self.stores:
            assert {s.id: (s.spec.name, s.pending_delete, s.spec_version) for s in store.services} == self.model
            assert {task.id for task in store.tasks} == {f"task-{id_}" for id_ in self.model}
            for name in ("web", "db"):
                owners = [i for i, (n, going, _) in self.model.items() if n == name and not going]
                found = store.services.by_name(name)
                assert len(owners) <= 1
                assert (found.id if found else None) == (owners[0] if owners else None)

    @invariant()
    def a_reopened_store_shows_the_same(self) -> None:
        fresh = self.run(Store.open(self.engine))
        assert {s.id: s for s in fresh.services} == {s.id: s for s in self.stores[0].services}
        self.run(fresh.close())

    @rule()
    def a_follower_of_the_feed_catches_up(self) -> None:
        changes = self.feed.take()
        if changes.resync:
            self.replica = {s.id: s for s in self.stores[0].services}
        for change in changes:
            assert self.replica.get(change.id) == change.old
            if change.action is Action.REMOVE:
                del self.replica[change.id]
            else:
                self.replica[change.id] = change.new
        assert self.replica == {s.id: s for s in self.stores[0].services}


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestStoreMachine = StoreMachine.TestCase
