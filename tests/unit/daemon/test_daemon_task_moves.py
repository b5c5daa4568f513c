"""The data of a task from one host to another: real trees, streams and notes, between two engines that obey the test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from support.objects import make_task

from fleet import errors
from fleet.api.http import install_error_handlers
from fleet.api.task_moves import Standing, Verdict
from fleet.clock import SystemClock
from fleet.containers.moving import TASK_LABEL
from fleet.daemon.moves import task_target
from fleet.daemon.moves.http import cluster_task_move_routes
from fleet.daemon.moves.peers import Peers
from fleet.daemon.moves.task_notes import TaskNotes
from fleet.daemon.moves.task_source import TaskSource
from fleet.daemon.moves.task_target import TaskTarget
from fleet.model.ids import NodeId, TaskId
from fleet.model.task import MovedFrom, Task
from fleet.model.wire import to_builtins

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not run: needs root, for owners and overlay's attributes")

NEW, OLD = TaskId("n" * 25), TaskId("o" * 25)


class Engine:
    """Of one host: containers and volumes as directories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.containers: list[Any] = []
        self.volumes = self
        self.named: dict[str, Any] = {}

    def make(self, task_id: str, *, up: bool) -> Any:
        """A container of the task with its volumes, which are made if they are not there."""
        (self.root / task_id / "upper").mkdir(parents=True)
        points = [
            SimpleNamespace(kind="volume", name="data", target="/data", anonymous=False),
            SimpleNamespace(kind="volume", name=f"anon-{task_id}", target="/anon", anonymous=True),
        ]
        for point in points:
            if point.name not in self.named:
                self.named[point.name] = SimpleNamespace(name=point.name, device="", labels={})
                (self.root / "volumes" / point.name).mkdir(parents=True)
        made = SimpleNamespace(
            id=task_id, name=task_id, labels={TASK_LABEL: task_id}, is_up=up, image_id="img", ids=None, mounts=points
        )
        self.containers.append(made)
        return made

    def list(self) -> list[Any]:
        return self.containers

    def directory(self, container_id: str) -> Path:
        return self.root / container_id

    def get(self, name: str) -> Any:
        found = self.named.get(name) or next((c for c in self.containers if c.name == name), None)
        if found is None:
            raise errors.NotFoundError(f"no {name}")
        return found

    def path(self, volume: Any) -> Path:
        return self.root / "volumes" / volume.name

    async def remove(self, name: str, *, force: bool, volumes: bool = False) -> None:
        self.named.pop(name, None)
        self.containers = [c for c in self.containers if c.id != name]


class Wire(Peers):
    """Straight into the source's application; ``cut`` after so many bytes, once."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__()
        self._app = app

    def client(self, *, answer_s: float | None = 60.0) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self._app))


class World:
    """Two hosts, and what the managers say."""

    def __init__(self, root: Path) -> None:
        self.engines = [Engine(root / "a"), Engine(root / "b")]
        self.notes = [TaskNotes(root / "a" / "moves"), TaskNotes(root / "b" / "moves")]
        for notes in self.notes:
            notes.open()
        self.standing: Standing | None = Standing(
            task=NEW, node=NodeId("b"), from_task=OLD, from_node=NodeId("a"), from_name="a", from_address="a:2377",
            may_copy=True, may_finish=False, verdict=Verdict.OPEN,
        )  # fmt: skip
        self.peer = NodeId("b")
        self.task: Task = msgspec.structs.replace(
            make_task(node_id="b"), id=NEW, moved_from=MovedFrom(task=OLD, node=NodeId("a"))
        )
        self.said: list[tuple[str, bool]] = []
        self.start()

    def start(self) -> None:
        """Both daemons, (again)."""
        self.source = TaskSource(self.notes[0], engine=cast("Any", self.engines[0]), clock=SystemClock())
        app = FastAPI()
        install_error_handlers(app)
        moves: Any = SimpleNamespace(task_source=self.source)
        caller: Any = lambda _request, role=None: SimpleNamespace(node_id=self.peer)  # noqa: E731
        app.include_router(cluster_task_move_routes(moves, caller))
        self.target = TaskTarget(
            self.notes[1], engine=cast("Any", self.engines[1]), peers=Wire(app), clock=SystemClock()
        )
        self.source.calls = self.target.calls = cast("Any", self)

    async def ask(self, _method: str, _path: str) -> Any:
        if self.standing is None:
            raise errors.NotFoundError("no such task")
        return to_builtins(self.standing)

    def tell(self, **fields: Any) -> None:
        assert self.standing is not None
        self.standing = msgspec.structs.replace(self.standing, **fields)

    async def fetch(self) -> None:
        async with asyncio.timeout(20):
            await self.target.fetch(self.task, image_id="img", ids=None, progress=self._progress)

    def _progress(self, text: str, is_copied: bool) -> None:
        self.said.append((text, is_copied))
        if is_copied:
            self.when_copied()

    def when_copied(self) -> None:
        """As the managers and the old host: it is told to stop, and ends."""
        self.tell(may_finish=True)
        for container in self.engines[0].containers:
            container.is_up = False

    async def place(self) -> Any:
        made = self.engines[1].make("new", up=False)
        await self.target.place(self.task, made)
        return made

    def file(self, host: int, *parts: str) -> Path:
        return self.engines[host].root.joinpath(*parts)


def on(tmp_path: Path, body: Callable[[World], Awaitable[None]], *, up: bool = True) -> None:
    async def main() -> None:
        world = World(tmp_path)
        world.engines[0].make(OLD, up=up)
        world.file(0, "volumes", "data", "f").write_text("data")
        world.file(0, "volumes", f"anon-{OLD}", "f").write_text("anon")
        world.file(0, OLD, "upper", "f").write_text("layer")
        await body(world)

    asyncio.run(main())


def check_arrived(world: World, *, data: str = "data") -> None:
    assert world.file(1, "volumes", "data", "f").read_text() == data
    assert world.file(1, "volumes", "anon-new", "f").read_text() == "anon"
    assert world.file(1, "new", "upper", "f").read_text() == "layer"


def test_what_changes_until_the_old_one_has_ended_comes_too(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        ends = world.when_copied

        def writes_on() -> None:
            world.file(0, "volumes", "data", "f").write_text("more data")
            world.file(0, "volumes", "data", "g").write_text("late")
            ends()

        world.when_copied = writes_on  # type: ignore[method-assign]
        await world.fetch()
        await world.place()
        check_arrived(world, data="more data")
        assert world.file(1, "volumes", "data", "g").read_text() == "late"
        assert [copied for _, copied in world.said].count(True) == 1
        assert world.target.is_placed(world.task)
        assert not world.notes[1].staging(NEW).exists()

    on(tmp_path, body)


def test_the_rest_is_not_given_while_it_runs_or_may_run(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.source.offer(NEW, NodeId("b"))
        assert not await world.source.has_ended(NEW, NodeId("b"))
        world.tell(may_finish=True)
        with pytest.raises(errors.ConflictError):
            await world.source.tree(NEW, NodeId("b"), 0, after="", is_rest=True)
        world.tell(may_finish=False)
        world.engines[0].containers[0].is_up = False
        assert not await world.source.has_ended(NEW, NodeId("b"))
        with pytest.raises(errors.ConflictError):
            await world.source.tree(NEW, NodeId("b"), 0, after="", is_rest=True)

    on(tmp_path, body)


def test_nobody_but_the_node_that_managers_name_gets_anything(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.peer = NodeId("c")
        with pytest.raises(errors.ForbiddenError):
            await world.fetch()
        with pytest.raises(errors.ForbiddenError):
            await world.source.offer(NEW, NodeId("c"))
        world.tell(may_copy=False)
        with pytest.raises(errors.ForbiddenError):
            await world.source.offer(NEW, NodeId("b"))

    on(tmp_path, body)


def test_a_source_that_was_started_anew_gives_a_whole_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_target, "_TRY_PAUSE_S", 0.01)

    async def body(world: World) -> None:
        ends = world.when_copied

        def restarts() -> None:
            world.source._offers.clear()
            ends()

        world.when_copied = restarts  # type: ignore[method-assign]
        await world.fetch()
        await world.place()
        check_arrived(world)

    on(tmp_path, body)


def test_what_was_not_placed_is_begun_anew_by_the_next_daemon_and_files_that_came_are_gone(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.fetch()
        assert world.notes[1].staging(NEW).exists()
        world.start()
        _, fetched = world.notes[1].open()
        world.target.recover(fetched)
        assert not world.target.is_placed(world.task)
        assert not world.notes[1].staging(NEW).exists()
        await world.target.discard(world.task)
        await world.fetch()
        await world.place()
        check_arrived(world)

    on(tmp_path, body)


def test_a_volume_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.engines[1].make("other", up=True)
        with pytest.raises(errors.RejectedFault, match="a volume data is on this host already"):
            await world.fetch()
        await world.target.discard(world.task)
        assert "data" in world.engines[1].named

    on(tmp_path, body)


def test_another_image_of_the_same_name_is_refused(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.engines[0].containers[0].image_id = "other"
        with pytest.raises(errors.RejectedFault, match="the image is another one"):
            await world.fetch()

    on(tmp_path, body)


def test_both_let_go_when_the_managers_say_that_it_has_run(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.fetch()
        await world.place()
        for host in (world.source, world.target):
            await host.look_after()
        assert world.engines[0].containers, "nothing is decided yet"
        world.tell(verdict=Verdict.MOVED, may_copy=False)
        for host in (world.source, world.target):
            await host.look_after()
        assert world.engines[0].containers == []
        assert "data" not in world.engines[0].named
        assert "data" in world.engines[1].named
        assert not list(world.notes[0].folder.iterdir())
        assert not list(world.notes[1].folder.iterdir())

    on(tmp_path, body)


def test_when_it_came_to_nothing_the_source_keeps_everything_and_the_target_nothing(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.fetch()
        made = await world.place()
        made.name = world.notes[1].open()[1][0].name
        world.tell(verdict=Verdict.OVER, may_copy=False)
        for host in (world.source, world.target):
            await host.look_after()
        assert [c.id for c in world.engines[0].containers] == [OLD]
        assert "data" in world.engines[0].named
        assert world.engines[1].containers == []
        assert "data" not in world.engines[1].named

    on(tmp_path, body)


def test_a_task_that_managers_have_forgotten_costs_no_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_target, "_UNKNOWN_S", 0.0)

    async def body(world: World) -> None:
        await world.fetch()
        await world.place()
        world.standing = None
        await world.target.look_after()
        assert "data" in world.engines[1].named
        assert not list(world.notes[1].folder.iterdir())

    on(tmp_path, body)


def test_on_the_same_host_named_volumes_are_used_as_they_are_even_if_the_old_container_is_gone(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.tell(node=NodeId("a"), may_finish=True)
        world.peer = NodeId("a")
        world.engines[1] = world.engines[0]
        world.notes[1] = world.notes[0]
        world.start()
        await world.fetch()
        await world.place()
        assert world.file(0, "volumes", "data", "f").read_text() == "data"
        assert world.file(0, "volumes", "anon-new", "f").read_text() == "anon"
        world.tell(verdict=Verdict.MOVED)
        for host in (world.source, world.target):
            await host.look_after()
        assert "data" in world.engines[0].named
        assert [c.id for c in world.engines[0].containers] == [OLD, "new"]

        world.engines[0].containers = []
        world.tell(verdict=Verdict.OPEN)
        await world.target.discard(world.task)
        await world.fetch()

    on(tmp_path, body, up=False)
