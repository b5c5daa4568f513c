"""The keeper, behind a supervisor that this test plays; needs no root."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fleet.node_runtime import keeper
from fleet.node_runtime.state import StateDir, start_ticks


def a_supervisor_with_children(state_dir: Path, children: dict[str, Callable[[], None]]) -> int:
    """Fork a keeper whose supervisor starts the children, writes them down and dies of SIGKILL; the keeper's pid."""
    StateDir(str(state_dir))
    pid = os.fork()
    if pid:
        return pid
    try:
        keeper.stay_behind(str(state_dir))
        state = StateDir(str(state_dir))
        for name, play in children.items():
            state.create(name, {})
            child = os.fork()
            if child == 0:
                play()
                os._exit(0)
            state.write_running(name, {"pid": child, "ticks": start_ticks(child)})
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(99)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_orphans_are_reaped_and_their_statuses_written_down(tmp_path: Path) -> None:
    go, state_dir = tmp_path / "go", tmp_path / "state"

    def exits() -> None:
        wait_for(go)
        os._exit(7)

    def is_killed() -> None:
        wait_for(go)
        os.kill(os.getpid(), signal.SIGTERM)

    pid = a_supervisor_with_children(state_dir, {"a": exits, "b": is_killed})
    try:
        state = StateDir(str(state_dir))
        wait_for(state_dir / "b/running")
        time.sleep(0.1)  # the supervisor is dead by now
        assert keeper.reaped_status(state, "a") is None
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, (
            "the keeper waits for the orphans"
        )
        go.touch()
        _, status = os.waitpid(pid, 0)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    assert status == 0, "it ends with its last child"
    assert keeper.reaped_status(state, "a") == 7 << 8
    assert keeper.reaped_status(state, "b") == signal.SIGTERM


def test_a_process_in_no_record_is_reaped_without_a_trace(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"

    def forgets_itself() -> None:
        wait_for(state_dir / "a/running")
        StateDir(str(state_dir)).remove("a")

    pid = a_supervisor_with_children(state_dir, {"a": forgets_itself})
    assert os.waitpid(pid, 0)[1] == 0
    assert StateDir(str(state_dir)).list() == []


def test_whether_the_kernel_tells_is_found_out_without_leaving_a_child() -> None:
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    assert keeper.kernel_tells_exits() == (release >= (6, 15))
