"""A node's identity survives restarts and crashes between any two writes."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet import errors
from fleet.identity.authority import RootAuthority, create_root
from fleet.identity.keys import (
    LockedError,
    NodeIdentity,
    generate_request,
    load_identity,
    make_identity,
    remove_identity,
    save_identity,
)
from fleet.identity.tokens import make_unlock_key, parse_unlock_key
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
CLUSTER = ClusterId("c" * 25)


def new_identity(root: RootAuthority) -> NodeIdentity:
    request = generate_request()
    cert_pem = root.issue(
        request.csr_pem,
        node_id=NodeId("n" * 25),
        role=NodeRole.MANAGER,
        cluster_id=CLUSTER,
        lifetime=timedelta(days=1),
        now=NOW,
    )
    return make_identity(cert_pem=cert_pem, key_pem=request.key_pem, ca_pem=root.cert_pem)


@pytest.fixture(scope="module")
def root() -> RootAuthority:
    return create_root(CLUSTER, NOW)


def test_identity_is_loaded_as_it_was_saved(tmp_path: Path, root: RootAuthority) -> None:
    identity = new_identity(root)
    save_identity(tmp_path / "deep" / "identity", identity)
    assert load_identity(tmp_path / "deep" / "identity") == identity


def test_folder_without_identity_loads_as_none(tmp_path: Path) -> None:
    assert load_identity(tmp_path / "nowhere") is None


def test_key_is_readable_by_its_owner_alone(tmp_path: Path, root: RootAuthority) -> None:
    previous = os.umask(0)
    try:
        save_identity(tmp_path / "identity", new_identity(root))
    finally:
        os.umask(previous)
    key = tmp_path / "identity" / "current" / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700


def test_renewal_replaces_all_three_and_leaves_nothing_behind(tmp_path: Path, root: RootAuthority) -> None:
    save_identity(tmp_path, new_identity(root))
    second = new_identity(root)
    save_identity(tmp_path, second)
    assert load_identity(tmp_path) == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "generation-2"]


@pytest.mark.parametrize("crash_at", ["os.fsync", "pathlib.Path.symlink_to", "pathlib.Path.rename"])
def test_crash_during_renewal_keeps_the_old_identity_whole(
    tmp_path: Path, root: RootAuthority, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    first, second = new_identity(root), new_identity(root)
    save_identity(tmp_path, first)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(crash_at, crash)
        save_identity(tmp_path, second)
    assert load_identity(tmp_path) == first
    save_identity(tmp_path, second)
    assert load_identity(tmp_path) == second


def test_removed_identity_is_gone(tmp_path: Path, root: RootAuthority) -> None:
    save_identity(tmp_path, new_identity(root))
    remove_identity(tmp_path)
    remove_identity(tmp_path)
    assert load_identity(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_certificate_for_another_key_is_refused(root: RootAuthority) -> None:
    mine, other = new_identity(root), new_identity(root)
    with pytest.raises(errors.UnauthorizedError, match="not for this node's key"):
        make_identity(cert_pem=mine.cert_pem, key_pem=other.key_pem, ca_pem=root.cert_pem)


def test_certificate_of_another_root_is_refused(root: RootAuthority) -> None:
    mine = new_identity(root)
    with pytest.raises(errors.UnauthorizedError, match="not issued by the cluster's root"):
        make_identity(cert_pem=mine.cert_pem, key_pem=mine.key_pem, ca_pem=create_root(CLUSTER, NOW).cert_pem)


def test_half_an_identity_is_refused_with_advice(tmp_path: Path, root: RootAuthority) -> None:
    save_identity(tmp_path, new_identity(root))
    (tmp_path / "current" / "node.key").unlink()
    with pytest.raises(errors.UnauthorizedError, match="join again"):
        load_identity(tmp_path)


def test_identity_accepts_a_bundle_of_roots(root: RootAuthority) -> None:
    mine = new_identity(root)
    bundle = create_root(CLUSTER, NOW).cert_pem + root.cert_pem
    assert make_identity(cert_pem=mine.cert_pem, key_pem=mine.key_pem, ca_pem=bundle).ca_pem == bundle


def test_a_locked_key_opens_with_its_passphrase_alone(tmp_path: Path, root: RootAuthority) -> None:
    made = new_identity(root)
    save_identity(tmp_path, made, passphrase=b"p" * 32)
    assert b"BEGIN ENCRYPTED" in (tmp_path / "current" / "node.key").read_bytes()
    for wrong in (None, b"q" * 32):
        with pytest.raises(LockedError):
            load_identity(tmp_path, passphrase=wrong)
    assert load_identity(tmp_path, passphrase=b"p" * 32) == made
    save_identity(tmp_path, made)
    assert load_identity(tmp_path) == made
    assert load_identity(tmp_path, passphrase=b"p" * 32) == made  # a key that is not locked needs none


def test_unlock_keys_are_read_as_they_are_made_and_else_refused() -> None:
    secret = bytes(range(32))
    assert parse_unlock_key(f" {make_unlock_key(secret)}\n") == secret
    for bad in ("", "SWMKEY-1-", make_unlock_key(secret)[:-2], make_unlock_key(secret)[9:], "SWMKEY-1-" + "é" * 43):
        with pytest.raises(errors.UserError, match="expected the form"):
            parse_unlock_key(bad)
