"""The SQLite engine against the plain in-memory one: whatever is done to both, both answer the same.

History is kept very short in SQLite, so compaction runs between all steps; what it may still answer must be right.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_engine import MemoryEngine

from fleet.engines import sqlite_writer
from fleet.engines.sqlite import HistoryLimits, SqliteEngine
from fleet.store.engine import CompactedError, Compare, CompareFailed, Engine, Put, Txn

KEYS = [f"/{name}" for name in ("a", "a/b", "ab", "b", "ä", "b/0", "b/1")]

puts = st.lists(st.builds(Put, st.sampled_from(KEYS), st.binary(max_size=5)), max_size=3, unique_by=lambda put: put.key)
compares = st.lists(
    st.builds(Compare, st.sampled_from(KEYS), st.integers(0, 12)), max_size=2, unique_by=lambda c: c.key
)


@st.composite
def txns(draw: st.DrawFn) -> Txn:
    written = draw(puts)
    deletes = draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True))
    keys = {put.key for put in written}
    return Txn(
        compares=tuple(draw(compares)) if draw(st.integers(0, 3)) == 0 else (),
        puts=tuple(written),
        deletes=tuple(key for key in deletes if key not in keys),
    )


async def outcome(engine: Engine, txn: Txn) -> object:
    try:
        return await engine.commit(txn)
    except CompareFailed as failed:
        return failed.actual, failed.revision


async def follow(engine: Engine, prefix: str, first: int, last: int) -> list[object]:
    result: list[object] = []
    if first > last:
        return result
    watch = engine.watch(prefix, first)
    async for batch in watch:
        result.append(batch)
        if batch.revision >= last:
            break
    await watch.aclose()  # type: ignore[attr-defined]
    return result


async def compare_runs(steps: Iterable[Txn | None], directory: Path) -> None:
    def make() -> SqliteEngine:
        return SqliteEngine(directory, cluster_id="c", history=HistoryLimits(revisions=6, memory_revisions=3))

    oracle, engine = MemoryEngine(), make()
    await oracle.start()
    await engine.start()
    try:
        for step in steps:
            if step is None:  # restart
                await engine.close()
                engine = make()
                await engine.start()
            else:
                assert await outcome(engine, step) == await outcome(oracle, step)
            for prefix in ("/", "/a", "/b/"):
                assert await engine.list(prefix) == await oracle.list(prefix)
        answered = 0
        for revision in range(1, oracle.revision + 1):
            try:
                listing = await engine.list("/", at_revision=revision)
                batches = await follow(engine, "/", revision + 1, oracle.revision)
            except CompactedError:
                assert answered == 0, "older than a revision that was answered"
                continue
            answered += 1
            assert listing == await oracle.list("/", at_revision=revision)
            assert batches == await follow(oracle, "/", revision + 1, oracle.revision)
        assert answered >= min(6, oracle.revision)
    finally:
        await engine.close()
        await oracle.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(txns(), txns(), txns(), st.none()), max_size=30))
def test_sqlite_answers_as_the_oracle_does(steps: list[Txn | None]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(compare_runs(steps, Path(directory)))


def test_the_property_runs_with_compaction() -> None:
    """The step after which history is dropped is larger than the runs above: check it on a long one."""
    steps = [Txn(puts=(Put(KEYS[i % 7], str(i).encode()),), deletes=(KEYS[(i + 3) % 7],)) for i in range(700)]
    with tempfile.TemporaryDirectory() as directory:
        assert len(steps) > sqlite_writer._COMPACT_STEP
        asyncio.run(compare_runs(steps, Path(directory)))
