"""What the SQLite engine promises beyond the contract: durability, full disks, whose directory it is, bounded history."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fleet import errors
from fleet.engines.sqlite import HistoryLimits, SqliteEngine
from fleet.engines.sqlite_file import SqliteFile, open_file
from fleet.store.engine import CompactedError, Compare, CompareFailed, EngineFailedError, Entry, Put, Txn

CHILD = Path(__file__).with_name("engines_crash_child.py")


def with_engine(
    directory: Path,
    body: Callable[[SqliteEngine], Awaitable[None]],
    *,
    cluster_id: str = "c1",
    history: HistoryLimits | None = None,
    pages_max: int | None = None,
) -> None:
    async def main() -> None:
        engine = SqliteEngine(directory, cluster_id=cluster_id, history=history, pages_max=pages_max)
        try:
            await engine.start()
            async with asyncio.timeout(60):
                await body(engine)
        finally:
            await engine.close()

    asyncio.run(main())


async def nothing(_engine: SqliteEngine) -> None:
    pass


def test_state_history_and_leases_survive_a_restart(tmp_path: Path) -> None:
    leases: list[int] = []

    async def before(engine: SqliteEngine) -> None:
        leases.append(await engine.grant(0.2))
        await engine.commit(Txn(puts=(Put("/a", b"1"), Put("/mortal", b"1", leases[0]))))
        await engine.commit(Txn(puts=(Put("/a", b"2"),)))

    async def after(engine: SqliteEngine) -> None:
        assert [(e.key, e.value, e.mod_revision) for e in (await engine.list("/a")).entries] == [("/a", b"2", 3)]
        assert [(e.key, e.value) for e in (await engine.list("/", at_revision=2)).entries] == [
            ("/a", b"1"),
            ("/mortal", b"1"),
        ]
        assert [batch.revision async for batch in upto(engine, 3)] == [2, 3]
        assert await engine.get("/mortal") is not None  # its time starts anew
        while await engine.get("/mortal") is not None:
            await asyncio.sleep(0.02)

    with_engine(tmp_path, before)
    with_engine(tmp_path, after)


def test_a_lease_outlives_a_stall_of_the_process_that_keeps_it_alive(tmp_path: Path) -> None:
    async def body(engine: SqliteEngine) -> None:
        lease = await engine.grant(0.3)
        await engine.commit(Txn(puts=(Put("/a", b"1", lease),)))
        await asyncio.sleep(0.05)
        time.sleep(1.2)  # the whole loop stands still, keeper and engine
        await asyncio.sleep(0.05)
        await engine.keep_alive(lease)
        assert await engine.get("/a") is not None
        while await engine.get("/a") is not None:  # and it ends when it is kept alive no more
            await asyncio.sleep(0.02)

    with_engine(tmp_path, body)


async def upto(engine: SqliteEngine, last: int, first: int = 1):  # type: ignore[no-untyped-def]
    async for batch in engine.watch("/", first):
        yield batch
        if batch.revision >= last:
            return


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Twelve lives, each killed at a random moment: every acknowledged write is there, and every pair agrees."""
    rng = random.Random(7)
    acknowledged: dict[int, int] = {}
    written = 0
    revisions = [1]
    for life in range(12):
        start = max(acknowledged.values(), default=0) + 1
        child = subprocess.Popen(
            [sys.executable, str(CHILD), str(tmp_path), str(start)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        timer = rng.uniform(0.0, 0.25) if life else 0.5
        try:
            child.wait(timer)
        except subprocess.TimeoutExpired:
            child.kill()
        out, err = child.communicate()
        assert child.returncode == -signal.SIGKILL, err.decode()
        for line in out.decode().splitlines(keepends=True):
            if line.endswith("\n"):
                writer, number, revision = map(int, line.split())
                acknowledged[writer] = max(acknowledged.get(writer, 0), number)
                revisions.append(revision)
                written += 1

        async def check(engine: SqliteEngine) -> None:
            listing = await engine.list("/")
            assert listing.revision >= max(revisions)
            state = {entry.key: entry.value for entry in listing.entries}
            for writer, number in acknowledged.items():
                assert int(state[f"/a/{writer}"]) >= number
                assert state[f"/a/{writer}"] == state[f"/b/{writer}"]
                logs = sorted(key for key in state if key.startswith(f"/log/{writer}/"))
                assert logs[-1] == f"/log/{writer}/{int(state[f'/a/{writer}']):09}"

        with_engine(tmp_path, check)
    assert written > 100, "the children hardly wrote: the test shows nothing"


@pytest.mark.skipif(shutil.which("strace") is None, reason="not run: needs strace (package strace)")
def test_every_acknowledgement_comes_after_an_fsync(tmp_path: Path) -> None:
    """What kill -9 cannot show, because the kernel keeps what was written: the order of the system calls."""
    script = f"""
import asyncio, os
from pathlib import Path
from fleet.engines.sqlite import SqliteEngine
from fleet.store.engine import Put, Txn

async def main():
    engine = SqliteEngine(Path({str(tmp_path / "state")!r}), cluster_id="c1")
    await engine.start()
    os.write(1, b"begin")
    for number in range(20):
        await engine.commit(Txn(puts=(Put(f"/{{number}}", b"x"),)))
        os.write(1, b"acknowledged")
    await engine.close()

asyncio.run(main())
"""
    trace = tmp_path / "trace"
    calls = "trace=write,pwrite64,fsync,fdatasync"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", calls, sys.executable, "-c", script]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    is_synced = False
    acknowledged = 0
    for line in trace.read_text().splitlines():
        if "state.db-wal" in line and "pwrite64" in line:
            is_synced = False
        elif ("sync(" in line and "state.db-wal" in line) or "sync resumed" in line:
            is_synced = "= 0" in line
        elif '"acknowledged"' in line:
            assert is_synced, "acknowledged before the log was synced"
            acknowledged += 1
            is_synced = False
    assert acknowledged == 20


def fill_until_full(made: list[str]) -> Callable[[SqliteEngine], Awaitable[None]]:
    async def body(engine: SqliteEngine) -> None:
        with pytest.raises(errors.StorageFullError):
            for number in range(10_000):
                key = f"/fill/{number:05}"
                await engine.commit(Txn(puts=(Put(key, os.urandom(20_000)), Put(f"{key}/twin", b"x"))))
                made.append(key)
        revision = (await engine.list("/")).revision
        with pytest.raises(errors.StorageFullError):  # it stays an error, and the engine alive
            await engine.commit(Txn(puts=(Put("/more", os.urandom(200_000)),)))
        with pytest.raises(CompareFailed):
            await engine.commit(Txn(compares=(Compare("/fill/00000", 1),)))
        listing = await engine.list("/")
        assert listing.revision == revision
        assert [entry.key for entry in listing.entries] == [part for key in made for part in (key, f"{key}/twin")]

    return body


def test_full_file_refuses_writes_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    made: list[str] = []
    with_engine(tmp_path, fill_until_full(made), pages_max=400)
    assert len(made) > 20

    async def check(engine: SqliteEngine) -> None:
        assert len((await engine.list("/")).entries) == 2 * len(made)
        await engine.commit(Txn(puts=(Put("/more", b"room again"),)))

    with_engine(tmp_path, check)


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: mounting a tmpfs needs root")
def test_full_disk_refuses_writes_and_recovers_when_there_is_room(tmp_path: Path) -> None:
    """A real full disk: a 2 MiB tmpfs with a ballast file that is removed in the end."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "fleet-store-test", str(mount)], check=True)
    try:
        ballast = mount / "ballast"
        ballast.write_bytes(b"x" * 600_000)
        made: list[str] = []

        async def body(engine: SqliteEngine) -> None:
            await fill_until_full(made)(engine)
            ballast.unlink()
            revision = (await engine.list("/")).revision
            follower = engine.watch("/", revision + 1)
            assert await engine.commit(Txn(puts=(Put("/more", b"room again"),))) == revision + 1
            assert (await anext(follower)).revision == revision + 1

        with_engine(mount / "state", body)

        async def check(engine: SqliteEngine) -> None:
            assert len((await engine.list("/fill/")).entries) == 2 * len(made)
            assert await engine.get("/more") is not None

        with_engine(mount / "state", check)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_deleting_makes_room_in_a_full_file(tmp_path: Path) -> None:
    """Overwritten values count only until history gives them up, which a full file forces."""

    async def body(engine: SqliteEngine) -> None:
        for number in range(300):  # 300 x 20 KB through a file of 1.6 MB
            await engine.commit(Txn(puts=(Put("/same", os.urandom(20_000)), Put("/n", str(number).encode()))))
        entry = await engine.get("/n")
        assert entry is not None
        assert entry.value == b"299"

    with_engine(tmp_path, body, pages_max=400)


def test_an_io_error_fails_the_engine_for_good(tmp_path: Path) -> None:
    """Past RLIMIT_FSIZE a write fails with EFBIG, which is not a full disk."""
    script = f"""
import asyncio, os, resource, signal, sys
from pathlib import Path
from fleet.engines.sqlite import SqliteEngine
from fleet.store.engine import EngineFailedError, Put, Txn

async def main():
    engine = SqliteEngine(Path({str(tmp_path)!r}), cluster_id="c1")
    await engine.start()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    follower = asyncio.create_task(anext(engine.watch("/never", 1)))
    done = 0
    try:
        while done < 1000:
            await engine.commit(Txn(puts=(Put(f"/{{done}}", os.urandom(50_000)),)))
            done += 1
    except EngineFailedError as cause:
        print("failed:", cause)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for attempt in (engine.commit(Txn(puts=(Put("/x", b""),))), engine.get("/0"), follower):
        try:
            await attempt
        except EngineFailedError:
            print("still failed")
    await engine.close()
    print("done", done)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
asyncio.run(main())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("failed: writing the cluster state failed: disk I/O error"), result
    assert lines[1:4] == ["still failed"] * 3, result
    done = int(lines[4].removeprefix("done "))

    async def check(engine: SqliteEngine) -> None:
        assert [entry.key for entry in (await engine.list("/")).entries] == sorted(f"/{i}" for i in range(done))

    with_engine(tmp_path, check)


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    with_engine(tmp_path / "ours", nothing)
    with pytest.raises(errors.UserError, match="belongs to cluster c1, not to c2"):
        with_engine(tmp_path / "ours", nothing, cluster_id="c2")
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / "state.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(errors.UserError, match="another program"):
        with_engine(tmp_path / "other", nothing)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with_engine(tmp_path, nothing)
    with sqlite3.connect(tmp_path / "state.db") as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    with pytest.raises(errors.UserError, match="has format 99"):
        with_engine(tmp_path, nothing)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    async def fill(engine: SqliteEngine) -> None:
        for number in range(50):
            await engine.commit(Txn(puts=(Put(f"/{number}", b"v" * 3000),)))

    with_engine(tmp_path, fill)
    path = tmp_path / "state.db"
    data = bytearray(path.read_bytes())
    for page in range(4, len(data) // 4096, 3):
        data[page * 4096 : page * 4096 + 64] = os.urandom(64)
    path.write_bytes(data)
    with pytest.raises(EngineFailedError, match="restore it from a backup"):
        with_engine(tmp_path, nothing)


def test_a_directory_has_one_engine_at_a_time(tmp_path: Path) -> None:
    async def body(_engine: SqliteEngine) -> None:
        second = SqliteEngine(tmp_path, cluster_id="c1")
        with pytest.raises(errors.ConflictError, match="in use by another process"):
            await second.start()
        await second.close()

    with_engine(tmp_path, body)
    with_engine(tmp_path, nothing)


def test_files_are_private(tmp_path: Path) -> None:
    async def body(engine: SqliteEngine) -> None:
        await engine.commit(Txn(puts=(Put("/a", b"1"),)))
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
        for path in (tmp_path / "state").iterdir():
            assert path.stat().st_mode & 0o077 == 0, path

    with_engine(tmp_path / "state", body)


def test_history_is_bounded_and_the_present_is_not_touched_by_it(tmp_path: Path) -> None:
    async def body(engine: SqliteEngine) -> None:
        for number in range(1500):
            await engine.commit(Txn(puts=(Put(f"/k{number % 7}", str(number).encode()),)))
        await engine.commit(Txn(deletes=("/k0",)))
        state = [(entry.key, int(entry.value)) for entry in (await engine.list("/")).entries]
        assert state == [(f"/k{i}", max(n for n in range(1500) if n % 7 == i)) for i in range(1, 7)]
        with pytest.raises(CompactedError):
            await engine.list("/", at_revision=5)
        with sqlite3.connect(tmp_path / "state.db") as reader:
            rows = reader.execute("SELECT count(*) FROM entry").fetchone()[0]
        reader.close()
        assert rows < 100 + 512 + 10 + 7

    with_engine(tmp_path, body, history=HistoryLimits(revisions=100))

    async def again(engine: SqliteEngine) -> None:
        assert len((await engine.list("/")).entries) == 6
        with pytest.raises(CompactedError):
            async for _ in engine.watch("/", 2):
                pass
        assert [batch.revision async for batch in upto(engine, 1502, 1500)] == [1500, 1501, 1502]

    with_engine(tmp_path, again, history=HistoryLimits(revisions=100))


def test_history_is_bounded_in_bytes(tmp_path: Path) -> None:
    async def body(engine: SqliteEngine) -> None:
        for _ in range(100):
            await engine.commit(Txn(puts=(Put("/k", os.urandom(100_000)),)))
        with sqlite3.connect(tmp_path / "state.db") as reader:
            size = reader.execute("SELECT sum(length(value)) FROM entry").fetchone()[0]
        reader.close()
        assert size <= 1_200_000

    with_engine(tmp_path, body, history=HistoryLimits(data_bytes=1_000_000))


def test_readers_do_not_let_the_log_grow_without_bound(tmp_path: Path) -> None:
    """A reader is inside the log whenever a checkpoint comes by; beyond the bound the writer waits for it to finish."""
    file = open_file(tmp_path, cluster_id="c1")
    small = SqliteFile(file.writer, file.reader, os.dup(file._lock), log_bytes_max=400_000)
    log = tmp_path / "state.db-wal"
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with small._reading():
                time.sleep(0.05)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(2, 200):
            small.writer.execute("BEGIN IMMEDIATE")
            small.insert(number, [Entry(f"/{number}", os.urandom(20_000), number, number)])
            small.writer.execute("COMMIT")
            small.checkpoint()
        assert log.stat().st_size < 1_000_000
    finally:
        stop.set()
        reader.join()
        small.close()
        os.close(file._lock)


def test_a_slow_watch_is_served_from_history_beyond_memory(tmp_path: Path) -> None:
    async def body(engine: SqliteEngine) -> None:
        slow = engine.watch("/", 1)
        await engine.commit(Txn(puts=(Put("/0", b""),)))
        assert (await anext(slow)).revision == 2
        for number in range(1200):  # more than one page of history
            await engine.commit(Txn(puts=(Put(f"/{number}", b""), Put(f"/x{number}", b""))))
        revisions = [(await anext(slow)).revision for _ in range(1200)]
        assert revisions == list(range(3, 1203))

    with_engine(tmp_path, body, history=HistoryLimits(memory_revisions=10))


def test_a_cancelled_commit_does_not_disturb_the_others(tmp_path: Path) -> None:
    async def body(engine: SqliteEngine) -> None:
        tasks = [asyncio.create_task(engine.commit(Txn(puts=(Put(f"/{i}", b""),)))) for i in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, int) for result in results[1::2])
        keys = {entry.key for entry in (await engine.list("/")).entries}
        assert keys.issuperset(f"/{i}" for i in range(1, 50, 2))

    with_engine(tmp_path, body)
