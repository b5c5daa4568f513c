"""What a controller does with a task, over a host that obeys the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from support.objects import make_task

from fleet import errors
from fleet.agent.controller import Controller, Exit, Progress
from fleet.agent.task_machine import Step, next_step
from fleet.clock import SystemClock
from fleet.model.ids import NodeId, TaskId
from fleet.model.task import ContainerStatus, MovedFrom, Task, TaskState


class FakeHost:
    """A ``TaskRuntime``: every call is noted; faults and waits are set by the test."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, list[Exception]] = {}
        self.pulling = asyncio.Event()
        self.pulling.set()
        self.rest_came = asyncio.Event()
        self.healthy: bool | None = True
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    async def fetch_data(self, task: Task, progress: Progress) -> None:
        await self._call("fetch_data")
        progress("copied data", True)
        await self.rest_came.wait()

    async def prepare(self, task: Task) -> str:
        await self._call("prepare")
        await self.pulling.wait()
        return "c1"

    async def start(self, task: Task) -> ContainerStatus:
        await self._call("start")
        return ContainerStatus(container_id="c1", pid=7)

    async def wait_healthy(self, task: Task) -> bool:
        await self._call("wait_healthy")
        while self.healthy is None:
            await asyncio.sleep(0.001)
        return self.healthy

    async def watch(self, task: Task) -> Exit:
        await self._call("watch")
        return await asyncio.shield(self.ended)

    async def stop(self, task: Task) -> Exit | None:
        await self._call("stop")
        return Exit(code=143)

    async def remove(self, task: Task) -> None:
        await self._call("remove")


class Bench:
    """A controller running on a fake host, and its reports."""

    def __init__(
        self,
        state: TaskState = TaskState.ASSIGNED,
        desired: TaskState = TaskState.RUNNING,
        moved_from: MovedFrom | None = None,
    ) -> None:
        self.host = FakeHost()
        self.reported: list[TaskState] = []
        task = make_task(state=state, node_id="n1")
        task = msgspec.structs.replace(task, desired_state=desired, moved_from=moved_from)
        self.controller = Controller(
            task,
            task.status,
            runtime=self.host,
            clock=SystemClock(),
            limiter=asyncio.Semaphore(1),
            report=lambda _task, status: self.reported.append(status.state),
        )
        self.running = asyncio.create_task(self.controller.run())

    def want(self, desired: TaskState) -> None:
        self.controller.update(msgspec.structs.replace(self.controller.task, desired_state=desired))

    async def reaches(self, state: TaskState) -> None:
        async with asyncio.timeout(5):
            while self.controller.status.state is not state:
                await asyncio.sleep(0.001)


def on_bench(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        await body()
        for left in asyncio.all_tasks() - before:
            left.cancel()

    asyncio.run(main())


def test_a_task_walks_to_running_and_its_exit_is_reported() -> None:
    async def body() -> None:
        bench = Bench()
        await bench.reaches(TaskState.RUNNING)
        assert list(dict.fromkeys(bench.reported)) == [
            TaskState.ACCEPTED,
            TaskState.PREPARING,
            TaskState.READY,
            TaskState.STARTING,
            TaskState.RUNNING,
        ]
        bench.host.ended.set_result(Exit(code=3))
        await bench.reaches(TaskState.FAILED)
        assert bench.controller.status.err == "task: non-zero exit (3)"
        assert bench.controller.status.container_status == ContainerStatus(container_id="c1", exit_code=3)

    on_bench(body)


def test_exit_zero_is_complete() -> None:
    async def body() -> None:
        bench = Bench()
        bench.host.ended.set_result(Exit(code=0))
        await bench.reaches(TaskState.COMPLETE)

    on_bench(body)


def test_a_task_held_at_ready_starts_only_when_released() -> None:
    async def body() -> None:
        bench = Bench(desired=TaskState.READY)
        await bench.reaches(TaskState.READY)
        await asyncio.sleep(0.02)
        assert "start" not in bench.host.calls
        bench.want(TaskState.RUNNING)
        await bench.reaches(TaskState.RUNNING)

    on_bench(body)


def test_a_pull_is_given_up_when_the_task_is_no_longer_wanted() -> None:
    async def body() -> None:
        bench = Bench()
        bench.host.pulling.clear()
        await bench.reaches(TaskState.PREPARING)
        bench.want(TaskState.SHUTDOWN)
        await bench.reaches(TaskState.SHUTDOWN)
        assert "start" not in bench.host.calls

    on_bench(body)


def test_waiting_for_health_is_given_up_when_the_task_is_no_longer_wanted() -> None:
    async def body() -> None:
        bench = Bench()
        bench.host.healthy = None
        await bench.reaches(TaskState.STARTING)
        bench.want(TaskState.SHUTDOWN)
        await bench.reaches(TaskState.SHUTDOWN)
        assert bench.host.calls[-1] == "stop"

    on_bench(body)


def test_an_unhealthy_container_fails_the_task() -> None:
    async def body() -> None:
        bench = Bench()
        bench.host.healthy = False
        bench.host.ended.set_result(Exit(code=0, unhealthy=True, detail="its health check failed"))
        await bench.reaches(TaskState.FAILED)
        assert TaskState.RUNNING not in bench.reported
        assert "unhealthy" in bench.controller.status.err

    on_bench(body)


@pytest.mark.parametrize(("step", "state"), [("prepare", TaskState.REJECTED), ("start", TaskState.FAILED)])
def test_a_fatal_fault_rejects_before_starting_and_fails_from_then_on(step: str, state: TaskState) -> None:
    async def body() -> None:
        bench = Bench()
        bench.host.faults[step] = [errors.RejectedFault("no such image: nope")]
        await bench.reaches(state)
        assert bench.controller.status.err == "no such image: nope"

    on_bench(body)


def test_a_passing_fault_is_tried_again_and_said_meanwhile() -> None:
    async def body() -> None:
        bench = Bench()
        bench.host.faults["prepare"] = [errors.UnavailableError("secret s is not here yet")]
        async with asyncio.timeout(5):
            while bench.controller.status.err != "secret s is not here yet":
                await asyncio.sleep(0.001)
        await bench.reaches(TaskState.RUNNING)
        assert bench.controller.status.err == ""

    on_bench(body)


def test_a_daemon_restarted_in_the_middle_takes_the_same_step_again() -> None:
    async def body() -> None:
        bench = Bench(state=TaskState.STARTING)
        await bench.reaches(TaskState.RUNNING)
        assert bench.host.calls[:1] == ["start"]

    on_bench(body)


@pytest.mark.parametrize("state", [TaskState.ASSIGNED, TaskState.ACCEPTED])
def test_what_was_kept_of_a_task_may_be_too_old_to_know_that_it_runs(state: TaskState) -> None:
    """The disk was full, then the daemon was killed: by what the next one reads the container was never made."""

    async def body() -> None:
        bench = Bench(state=state, desired=TaskState.SHUTDOWN)
        await bench.reaches(TaskState.SHUTDOWN)
        assert bench.host.calls == ["stop"]

    on_bench(body)


def test_removal_stops_then_removes_then_ends() -> None:
    async def body() -> None:
        bench = Bench()
        await bench.reaches(TaskState.RUNNING)
        bench.controller.remove()
        async with asyncio.timeout(5):
            await bench.running
        assert bench.host.calls[-2:] == ["stop", "remove"]

    on_bench(body)


def test_cancelling_a_controller_touches_nothing() -> None:
    async def body() -> None:
        bench = Bench()
        await bench.reaches(TaskState.RUNNING)
        bench.running.cancel()
        await asyncio.gather(bench.running, return_exceptions=True)
        assert "stop" not in bench.host.calls
        assert "remove" not in bench.host.calls

    on_bench(body)


@pytest.mark.parametrize("observed", list(TaskState))
@pytest.mark.parametrize("desired", [TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE])
def test_every_pair_of_states_has_a_step(observed: TaskState, desired: TaskState) -> None:
    step = next_step(observed, desired)
    if observed.is_terminal:
        assert step is Step.NOTHING
    elif desired.rank >= TaskState.SHUTDOWN.rank:
        assert step is Step.STOP
    elif observed.rank >= TaskState.READY.rank and desired is TaskState.READY:
        assert step in (Step.NOTHING, Step.START, Step.WATCH)
    else:
        assert step is not Step.STOP


MOVED = MovedFrom(task=TaskId("old"), node=NodeId("n0"))


def test_data_is_fetched_before_the_container_is_made_and_the_report_says_when_the_old_task_may_stop() -> None:
    async def body() -> None:
        bench = Bench(desired=TaskState.READY, moved_from=MOVED)
        await bench.reaches(TaskState.PREPARING)
        async with asyncio.timeout(5):
            while not bench.controller.status.copied:
                await asyncio.sleep(0.001)
        assert bench.host.calls == ["fetch_data"]
        assert bench.controller.status.message == "copied data"
        bench.host.rest_came.set()
        await bench.reaches(TaskState.READY)
        assert bench.host.calls == ["fetch_data", "prepare"]

    on_bench(body)


def test_a_fetch_that_is_not_wanted_any_more_is_cut_short_and_nothing_is_made() -> None:
    async def body() -> None:
        bench = Bench(desired=TaskState.READY, moved_from=MOVED)
        await bench.reaches(TaskState.PREPARING)
        bench.want(TaskState.SHUTDOWN)
        await bench.reaches(TaskState.SHUTDOWN)
        assert "prepare" not in bench.host.calls

    on_bench(body)


def test_fetching_takes_no_place_of_those_that_start_containers() -> None:
    async def body() -> None:
        bench = Bench(desired=TaskState.READY, moved_from=MOVED)
        await bench.reaches(TaskState.PREPARING)
        assert not bench.controller._limiter.locked()

    on_bench(body)


def test_data_that_cannot_be_had_rejects_the_task_with_the_reason() -> None:
    async def body() -> None:
        bench = Bench(desired=TaskState.READY, moved_from=MOVED)
        bench.host.faults["fetch_data"] = [errors.RejectedFault("a volume data is on this host already")]
        await bench.reaches(TaskState.REJECTED)
        assert "a volume data" in bench.controller.status.err

    on_bench(body)
