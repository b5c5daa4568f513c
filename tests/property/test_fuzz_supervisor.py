"""Whatever arrives at the supervisor's socket, it lives, refuses, keeps no descriptor, and its containers run on."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "kernel"))
from test_runtime_support import Node, node

from fleet.node_runtime.spec import ProcessSpec
from fleet.node_runtime.wire import MESSAGE_BYTES_MAX

pytestmark = pytest.mark.kernel

OPERATIONS = [
    "hello", "start", "list", "signal", "pause", "resume", "update", "exec", "signal_exec", "attach", "terminal",
    "remove", "nothing", "__init__", "",
]  # fmt: skip
FIELDS = [
    "id", "plan", "signal", "limits", "process", "exec_id", "descriptors", "pidfds", "terminals", "reaped", "fds",
    "rows", "columns",
]  # fmt: skip
PLAN_FIELDS = ["id", "cgroup", "log", "process", "limits", "pid", "network", "ipc", "uts", "device_rules", "mounts"]

numbers = st.one_of(st.integers(-3, 40), st.sampled_from([1 << 31, 1 << 63, 1 << 70, -(1 << 70)]), st.floats())
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(["alive", "../x", "a/b", "\0"])
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*PLAN_FIELDS, "tty"]), inner)
    ),
    max_leaves=12,
)
messages = st.fixed_dictionaries(
    {"seq": scalars, "op": st.one_of(st.sampled_from(OPERATIONS), scalars)},
    optional=dict.fromkeys(FIELDS, values),
)
huge = st.sampled_from([MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + 1, 1 << 31, (1 << 32) - 1])


def frame(body: bytes, size: int | None = None) -> bytes:
    return (len(body) if size is None else size).to_bytes(4, "big") + body


frames = st.one_of(
    messages.map(lambda message: frame(json.dumps(message).encode())),
    values.map(lambda value: frame(json.dumps(value).encode())),
    st.binary(max_size=60).map(frame),
    st.binary(max_size=60),
    st.tuples(st.binary(max_size=20), huge).map(lambda pair: frame(*pair)),
    st.integers(1, 200_000).map(lambda depth: frame(b"[" * depth)),
)


class Town:
    """One supervisor with a container that must not notice anything."""

    def __init__(self, own: Node, pid: int) -> None:
        self.path = str(own.directory / "run/supervisor.sock")
        self.supervisor = own.client.supervisor_pid
        self.pid = pid

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(5)
        peer.connect(self.path)
        return peer

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        with self.connect() as peer:
            peer.sendall(frame(json.dumps({"seq": 1, **message}).encode()))
            file = peer.makefile("rb")
            answer: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(4), "big")))
            return answer

    def throw(self, data: bytes, fds: int) -> None:
        """Send with some descriptors, say that no more comes, and read until the supervisor has closed."""
        with self.connect() as peer:
            sources = [os.open("/dev/null", os.O_RDONLY) for _ in range(fds)]
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sources))] if sources else []
                sent = peer.sendmsg([data or b"\0"], rights)
                peer.sendall((data or b"\0")[sent:])
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                for fd in sources:
                    os.close(fd)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.supervisor}/fd"))

    def check(self) -> None:
        listed = self.ask({"op": "list"})["ok"]["containers"]
        ours = next(entry for entry in listed if entry["id"] == "c1")
        assert (ours["status"], ours["pid"]) == ("running", self.pid)
        assert Path(f"/proc/{self.pid}").exists()


def in_a_town(story: Callable[[Town], None]) -> None:
    async def run() -> None:
        async with node() as own:
            started = await own.client.start(own.spec("sleep", "300"))
            await asyncio.to_thread(story, Town(own, started.pid))
            assert own.client.supervisor_pid in own.supervisors, "the supervisor died and was replaced"
            assert await own.client.exec_capture("c1", ProcessSpec(args=("true",)), timeout_s=20) == (0, b"")

    asyncio.run(run())


def test_requests_about_a_container_with_wrong_values_are_answered() -> None:
    def story(town: Town) -> None:
        before = town.descriptors()

        @bounded
        @given(
            st.sampled_from(["hello", "signal", "update", "exec", "signal_exec", "attach", "terminal"]),
            st.fixed_dictionaries(
                {}, optional=dict.fromkeys([f for f in FIELDS if f not in ("id", "fds", "signal")], values)
            ),
            st.one_of(st.none(), st.text(max_size=3), st.sampled_from([-1, 0, 65, 1 << 31, 1 << 70]), st.floats()),
        )
        def asked(operation: str, fields: dict[str, Any], number: object) -> None:
            answer = town.ask({**fields, "op": operation, "id": "c1", "signal": number})
            assert {"ok", "error"} & set(answer)
            town.check()

        asked()
        assert town.descriptors() <= before + 1

    in_a_town(story)


bounded = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def test_no_frame_harms_the_supervisor() -> None:
    def story(town: Town) -> None:
        town.check()
        before = town.descriptors()

        @bounded
        @given(st.lists(frames, min_size=1, max_size=3), st.sampled_from([0, 0, 1, 3, 200]))
        def thrown(data: list[bytes], fds: int) -> None:
            town.throw(b"".join(data), fds)
            town.check()

        thrown()
        for entry in town.ask({"op": "list"})["ok"]["containers"]:
            if entry["id"] != "c1":
                town.ask({"op": "remove", "id": entry["id"]})
        town.check()
        assert town.descriptors() <= before + 1  # the last connection may still be closing

    in_a_town(story)


def test_requests_with_a_damaged_plan_are_refused_and_leave_nothing() -> None:
    def story(town: Town) -> None:
        before = town.descriptors()
        plan: dict[str, Any] = {
            "id": "fuzz", "cgroup": "fuzz", "log": None, "process": {"tty": False}, "limits": {}, "pid": "private",
            "network": "none", "ipc": "private", "uts": "private", "device_rules": [], "cgroup_namespace": "private",
            "mounts": [], "root": {}, "init": False,
        }  # fmt: skip

        @bounded
        @given(st.dictionaries(st.sampled_from(list(plan)), values, max_size=3))
        def damaged(change: dict[str, Any]) -> None:
            answer = town.ask({"op": "start", "plan": {**plan, **change, "id": "fuzz"}})
            assert set(answer["error"]) == {"kind", "code", "text"}
            town.ask({"op": "remove", "id": "fuzz"})
            town.check()

        damaged()
        assert town.descriptors() <= before + 1

    in_a_town(story)
