"""Encryption at rest: what is sealed opens in its place with its key, and nowhere else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from support.memory_engine import MemoryEngine
from support.objects import make_secret, make_task

from fleet import errors
from fleet.store import AesSealer, EngineFailedError, Put, Store, Transaction, Txn, load_or_create_key, sealing
from fleet.store.sealing import KEY_BYTES, save_key

KEY = b"k" * 32


def test_what_is_sealed_opens_again_and_shows_nothing() -> None:
    sealer = AesSealer(KEY)
    sealed = sealer.seal("/a", b"hunter2" * 10)
    assert b"hunter" not in sealed
    assert len(sealed) == 70 + 53
    assert sealer.unseal("/a", sealed) == b"hunter2" * 10
    assert sealer.seal("/a", b"hunter2" * 10) != sealed
    assert "kkk" not in repr(sealer)


def test_another_place_key_or_bit_does_not_open() -> None:
    sealed = AesSealer(KEY).seal("/a", b"x")
    with pytest.raises(errors.InvariantError, match="does not open"):
        AesSealer(KEY).unseal("/b", sealed)
    with pytest.raises(errors.InvariantError, match="does not open"):
        AesSealer(b"o" * 32).unseal("/a", sealed)
    for position in range(1, len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(errors.InvariantError, match="does not open"):
            AesSealer(KEY).unseal("/a", bytes(changed))
    with pytest.raises(errors.InvariantError, match="does not open"):
        AesSealer(KEY).unseal("/a", sealed[:8])


def test_plain_values_are_refused() -> None:
    with pytest.raises(errors.InvariantError, match="without encryption"):
        AesSealer(KEY).unseal("/a", b'{"ID":"x"}')


def test_the_salt_is_another_one_after_a_million_values_and_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_VALUES_A_SALT", 3)
    sealer = AesSealer(KEY)
    sealed = [sealer.seal("/a", b"x") for _ in range(7)]
    heads = [value[:25] for value in sealed]
    assert len(set(heads)) == 3 and heads[0] == heads[2] != heads[3]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    child = sealer.seal("/a", b"x")
    assert child[:25] not in heads
    other = AesSealer(KEY)
    assert {other.unseal("/a", value) for value in [*sealed, child]} == {b"x"}


def test_of_the_keys_that_values_are_opened_with_a_bounded_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_VALUES_A_SALT", 1)
    monkeypatch.setattr(sealing, "_DERIVED_MAX", 3)
    sealer = AesSealer(KEY)
    sealed = [sealer.seal("/a", str(number).encode()) for number in range(9)]
    for _ in range(2):
        assert [sealer.unseal("/a", value) for value in sealed] == [str(number).encode() for number in range(9)]
        assert len(sealer._derived) == 3


def test_a_store_keeps_everything_sealed_and_opens_only_with_the_key() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine, sealer=AesSealer(KEY))
        await store.commit(Transaction().create(make_secret("s", data=b"hunter2")).create(make_task("t")))
        entries = (await engine.list("/")).entries
        assert {entry.key for entry in entries} == {"/fleet/secret/secret-s", "/fleet/name/secret/s", "/fleet/task/t"}
        assert not [entry for entry in entries if b"Spec" in entry.value or b"hunter2" in entry.value]
        await store.close()
        again = await Store.open(engine, sealer=AesSealer(KEY))
        assert again.secrets.find("s").spec.data == b"hunter2"
        with pytest.raises(errors.InvariantError):
            await Store.open(engine, sealer=AesSealer(b"o" * 32))
        # A value planted behind the store's back ends the store rather than being believed.
        await engine.commit(Txn(puts=(Put("/fleet/task/planted", b"{}"),)))
        assert "planted" in str(await again.failed())
        with pytest.raises(EngineFailedError):
            await again.commit(Transaction().create(make_task("u")))
        await again.close()
        await engine.close()

    asyncio.run(main())


def test_a_key_is_made_once_and_only_for_new_state(tmp_path: Path) -> None:
    path = tmp_path / "state.key"
    with pytest.raises(errors.UserError, match="is missing: restore"):
        load_or_create_key(path, is_new=False)
    key = load_or_create_key(path, is_new=True)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(path, is_new=True) == key
    assert load_or_create_key(path, is_new=False) == key
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_leftover_of_a_crash_does_not_hinder(tmp_path: Path) -> None:
    (tmp_path / ".state.key.new").write_bytes(b"half")
    assert len(load_or_create_key(tmp_path / "state.key", is_new=True)) == 32


def test_an_exposed_short_or_linked_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.key"
    path.write_bytes(KEY)
    path.chmod(0o644)
    with pytest.raises(errors.UserError, match="mode 0600"):
        load_or_create_key(path, is_new=False)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(errors.UserError, match="not a key"):
        load_or_create_key(path, is_new=False)
    path.unlink()
    os.symlink("/etc/hostname", path)
    with pytest.raises(OSError, match="symbolic links"):
        load_or_create_key(path, is_new=True)


def test_a_locked_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    path, key = tmp_path / "key", bytes(range(KEY_BYTES))
    save_key(path, key, passphrase=b"p" * 32)
    assert key not in path.read_bytes()
    assert load_or_create_key(path, is_new=False, passphrase=b"p" * 32) == key
    with pytest.raises(errors.UserError, match="unlock"):
        load_or_create_key(path, is_new=False)
    with pytest.raises(errors.UserError, match="another key"):
        load_or_create_key(path, is_new=False, passphrase=b"q" * 32)
    save_key(path, key)
    assert load_or_create_key(path, is_new=False) == key
