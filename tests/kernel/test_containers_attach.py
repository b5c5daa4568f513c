"""Talking with real processes: a container's own, and those that join it."""

from __future__ import annotations

import asyncio

import pytest
from containers_host import RealHost, on_real_host

from fleet.containers import Attachment, ContainerConfig, ExecConfig, NetworkMode

pytestmark = pytest.mark.kernel


async def read_all(talk: Attachment) -> dict[int, bytes]:
    """Framed output by stream number, to the end."""
    data = b""
    async with asyncio.timeout(10):
        while piece := await talk.read():
            data += piece
    streams: dict[int, bytes] = {}
    while data:
        size = int.from_bytes(data[4:8], "big")
        streams[data[0]] = streams.get(data[0], b"") + data[8 : 8 + size]
        data = data[8 + size :]
    return streams


def config(*command: str, **fields: object) -> ContainerConfig:
    return ContainerConfig(image="busybox", command=command, network_mode=NetworkMode.NONE, **fields)  # type: ignore[arg-type]


def test_who_attaches_before_the_start_misses_nothing(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await host.engine.create(
            config("sh", "-c", "echo first; echo bad >&2; cat; exit 3", open_stdin=True, stdin_once=True)
        )
        talks = [await host.engine.attach(made.id, stdin=True), await host.engine.attach(made.id)]
        await host.engine.start(made.id)
        await talks[0].write(b"typed\n")
        talks[0].close_stdin()
        first = await read_all(talks[0])
        assert first == {1: b"first\ntyped\n", 2: b"bad\n"}
        async with asyncio.timeout(10):
            assert (await host.engine.wait(made.id)).code == 3
        for talk in talks:
            talk.close()
        assert await host.output(made.id) in ("first\nbad\ntyped\n", "first\ntyped\nbad\n", "bad\nfirst\ntyped\n")

    on_real_host(story, unique=unique)


def test_a_terminal_takes_input_and_a_size(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await host.engine.create(config("sh", "-c", "read x; stty size; echo got $x", tty=True, open_stdin=True))
        talk = await host.engine.attach(made.id, stdin=True)
        await host.engine.start(made.id)
        await host.engine.resize(made.id, rows=33, columns=99)
        await talk.write(b"hello\r")
        output = b""
        async with asyncio.timeout(10):
            while piece := await talk.read():
                output += piece
        talk.close()
        assert b"33 99\r\n" in output and b"got hello\r\n" in output

    on_real_host(story, unique=unique)


def test_exec_gives_streams_input_and_exit_code(unique: str) -> None:
    async def story(host: RealHost) -> None:
        engine = host.engine
        made = await engine.create(config("sleep", "100", env=("A=1",)))
        await engine.start(made.id)
        wanted = ExecConfig(
            args=("sh", "-c", "cat; echo $A$B $PWD; echo bad >&2; exit 4"),
            env=("B=2",),
            working_dir="/tmp",
            attach_stdin=True,
        )
        session = engine.exec_create(made.id, wanted)
        talk = await engine.execs.attach(session)
        await talk.write(b"in\n")
        talk.close_stdin()
        assert await read_all(talk) == {1: b"in\n12 /tmp\n", 2: b"bad\n"}
        talk.close()
        assert await engine.execs.wait(session) == 4
        assert engine.execs.inspect(session).exit_code == 4
        terminal = engine.exec_create(made.id, ExecConfig(args=("sh", "-c", "tty; stty size"), tty=True))
        talk = await engine.execs.attach(terminal)
        output = b""
        async with asyncio.timeout(10):
            while piece := await talk.read():
                output += piece
        talk.close()
        assert output.startswith(b"/dev/")

    on_real_host(story, unique=unique)


def test_an_exec_that_leaves_a_child_behind_ends_with_its_own_process(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await host.engine.create(config("sleep", "100"))
        await host.engine.start(made.id)
        session = host.engine.exec_create(made.id, ExecConfig(args=("sh", "-c", "sleep 50 & echo out")))
        talk = await host.engine.execs.attach(session)
        assert await read_all(talk) == {1: b"out\n"}
        talk.close()

    on_real_host(story, unique=unique)
