"""Backups: what was written is read, and anything else is refused in words."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.memory_engine import MemoryEngine

from fleet import errors
from fleet.model.ids import ClusterId
from fleet.store.backup import BackupReader, backup_lines, put_into
from fleet.store.engine import Put, Txn

CLUSTER = ClusterId("c" * 25)
KEY = bytes(range(32))
ENTRIES = st.dictionaries(
    st.text("abc/é", max_size=8).map(lambda t: f"/fleet/config/{t}x"), st.binary(max_size=40), max_size=8
)


async def made(entries: dict[str, bytes]) -> bytes:
    engine = MemoryEngine()
    await engine.start()
    for key, value in entries.items():
        await engine.commit(Txn(puts=(Put(key, value),)))
    lease = await engine.grant(60)
    await engine.commit(Txn(puts=(Put("/fleet/leader", b"me", lease),)))
    lines = backup_lines(engine, cluster_id=CLUSTER, created_at=datetime(2026, 1, 1, tzinfo=UTC), sealing_key=KEY)
    found = b"".join([line async for line in lines])
    await engine.close()
    return found


def read(data: bytes, *, step: int = 7) -> dict[str, bytes]:
    reader = BackupReader()
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
    header, entries = reader.finish()
    assert (header.cluster_id, header.sealing_key) == (CLUSTER, KEY)
    return entries


@given(ENTRIES, st.integers(1, 50))
def test_a_backup_holds_what_was_there_but_for_leases(entries: dict[str, bytes], step: int) -> None:
    async def main() -> None:
        data = await made(entries)
        assert read(data, step=step) == entries
        engine = MemoryEngine()
        await engine.start()
        await put_into(engine, read(data))
        assert {e.key: e.value for e in (await engine.list("/")).entries} == entries
        if entries:
            with pytest.raises(errors.ConflictError):
                await put_into(engine, entries)
        await engine.close()

    asyncio.run(main())


@given(ENTRIES, st.data())
def test_a_changed_or_cut_backup_is_refused(entries: dict[str, bytes], choice: st.DataObject) -> None:
    data = asyncio.run(made(entries))
    place = choice.draw(st.integers(0, len(data) - 1))
    if choice.draw(st.booleans()):
        bad = data[:place]
    else:
        value = choice.draw(st.integers(0, 255).filter(lambda byte: byte != data[place]))
        bad = data[:place] + bytes([value]) + data[place + 1 :]
    with pytest.raises(errors.UserError):
        read(bad)


@given(st.binary(max_size=300))
def test_anything_at_all_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(errors.UserError):
        read(data)
