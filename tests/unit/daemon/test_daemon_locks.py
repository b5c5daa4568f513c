"""A manager's keys on disk can be unlocked whatever moment a change of their lock was killed at."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet import errors
from fleet.clock import SystemClock
from fleet.daemon import locks as module
from fleet.daemon.locks import Locks
from fleet.daemon.own_state import OwnState
from fleet.engines.etcd_member import EtcdMember, MemberFile, MemberTls
from fleet.identity.authority import create_root
from fleet.identity.keys import (
    LockedError,
    NodeIdentity,
    generate_request,
    load_identity,
    make_identity,
    save_identity,
    unlock_key,
)
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole
from fleet.store.sealing import load_or_create_key, save_key

OLD, NEW = b"o" * 32, b"n" * 32
KEY = bytes(range(32))


class Killed(BaseException):
    """The process ends here."""


class Manager:
    """The files of one, and what a running daemon keeps in memory of them."""

    def __init__(self, folder: Path, identity: NodeIdentity, member_key: str) -> None:
        self.folder = folder
        self.identity = identity
        self.member_key = member_key
        self.own = OwnState(folder, SystemClock(), run_folder=folder / "run")
        self.locks = Locks(folder, self.own)

    async def relock_identity(self, passphrase: bytes | None) -> None:
        save_identity(self.folder / "identity", self.identity, passphrase=passphrase)

    def restarted(self) -> Manager:
        return Manager(self.folder, self.identity, self.member_key)

    def unlock(self, given: bytes) -> None:
        """As ``Membership.unlock``; raises ``LockedError`` for a key that does not count."""
        other = self.locks.other(given)
        for passphrase, remaining in ((given, other), (other, given)):
            if passphrase is not None:
                try:
                    load_identity(self.folder / "identity", passphrase=passphrase)
                except LockedError:
                    continue
                self.locks.take_up(passphrase, remaining)
                return
        raise LockedError("no key fits")

    def is_locked(self) -> bool:
        try:
            load_identity(self.folder / "identity")
        except LockedError:
            return True
        return False

    def check(self) -> None:
        """Everything opens with the one passphrase that is in use."""
        passphrase = self.locks.passphrase
        assert load_or_create_key(self.folder / "store.key", is_new=False, passphrase=passphrase) == KEY
        stored = (self.folder / "etcd" / "tls" / "member.key").read_text()
        assert unlock_key(stored, passphrase) == self.member_key
        assert ("ENCRYPTED" in stored) is (passphrase is not None)
        assert load_identity(self.folder / "identity", passphrase=passphrase) == self.identity
        assert not (self.folder / "relocking").exists()


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    now, cluster_id, node_id = datetime.now(UTC), ClusterId("c" * 25), NodeId("n" * 25)
    root, request = create_root(cluster_id, now), generate_request()
    certificate = root.issue(
        request.csr_pem,
        node_id=node_id,
        role=NodeRole.MANAGER,
        cluster_id=cluster_id,
        lifetime=timedelta(days=1),
        now=now,
    )
    identity = make_identity(cert_pem=certificate, key_pem=request.key_pem, ca_pem=root.cert_pem)
    save_identity(tmp_path / "identity", identity)
    save_key(tmp_path / "store.key", KEY)
    EtcdMember.create(
        tmp_path / "etcd",
        SystemClock(),
        file=MemberFile(name=node_id, peer="127.0.0.1:1", client_port=1, token="t", initial_cluster="", joins=False),
        tls=MemberTls(ca_pem=root.cert_pem, certificate_pem=certificate, key_pem=request.key_pem),
    )
    return Manager(tmp_path, identity, request.key_pem)


def dying_at(step: int, manager: Manager, patch: pytest.MonkeyPatch) -> None:
    """The process ends before the ``step``-th write of the coming change."""
    count = itertools.count()

    def wrapped(call):  # type: ignore[no-untyped-def]
        def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
            if next(count) >= step:
                raise Killed
            return call(*args, **kwargs)

        return counted

    patch.setattr(module, "save_key", wrapped(save_key))
    patch.setattr(module, "write_secret", wrapped(module.write_secret))
    patch.setattr(manager.own, "relock", wrapped(manager.own.relock))
    patch.setattr(manager, "relock_identity", wrapped(manager.relock_identity))


@pytest.mark.parametrize(("before", "after"), [(None, NEW), (OLD, NEW), (OLD, None)])
@pytest.mark.parametrize("step", range(6))
def test_killed_before_any_step_it_opens_again(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, before: bytes | None, after: bytes | None, step: int
) -> None:
    if before is not None:
        asyncio.run(manager.locks.change(before, manager.relock_identity))
    with monkeypatch.context() as patch:
        dying_at(step, manager, patch)
        try:
            asyncio.run(manager.locks.change(after, manager.relock_identity))
        except Killed:
            manager = manager.restarted()
    if manager.is_locked() and manager.locks.passphrase is None:
        assert {before, after} - {None}
        known = [key for key in (before, after) if key is not None]
        opened = []
        for given in known:
            again = manager.restarted()
            try:
                again.unlock(given)
            except LockedError:
                continue
            again.check()
            opened.append(again)
        assert opened
        manager = opened[-1]
    manager.check()
    asyncio.run(manager.locks.change(after, manager.relock_identity))
    manager.check()
    assert manager.locks.passphrase == after


def test_a_key_that_never_counted_opens_nothing(manager: Manager) -> None:
    asyncio.run(manager.locks.change(OLD, manager.relock_identity))
    asyncio.run(manager.locks.change(NEW, manager.relock_identity))
    for wrong in (OLD, b"x" * 32):
        with pytest.raises(LockedError):
            manager.restarted().unlock(wrong)
    with pytest.raises(errors.UserError, match="another key"):
        load_or_create_key(manager.folder / "store.key", is_new=False, passphrase=OLD)
