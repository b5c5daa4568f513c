"""The cluster object: inspect, change settings, rotate join tokens and the root certificate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from fleet import errors
from fleet.identity.authority import RootAuthority
from fleet.identity.tokens import UNLOCK_BYTES, make_unlock_key
from fleet.manager.control.context import Context, required_version
from fleet.manager.control.service_spec import check_labels
from fleet.manager.external_ca import check_external
from fleet.manager.root_rotation import begin_rotation, trusted_roots, wanted_root
from fleet.manager.sealing_rotation import begin_sealing_rotation, is_rotating
from fleet.manager.signing import Signing
from fleet.model.cluster import ROOT_AUTHORITY, SEALING_AUTHORITY, Authority, Cluster, SwarmSpec
from fleet.model.common import SECOND_NS, Version
from fleet.model.node import NodeRole
from fleet.model.prometheus_access import parse_allowed
from fleet.orchestrator.moves import parse_mode
from fleet.scheduler.quotas import check_quotas
from fleet.scheduler.wishes import default_strategy
from fleet.store import Transaction
from fleet.store.sealing import KEY_BYTES

__all__ = ["ClusterControl", "RotateToken"]

RotateToken = Callable[[NodeRole], Awaitable[None]]

_HEARTBEAT_MIN_NS: Final = SECOND_NS // 10
_CERT_EXPIRY_MIN_NS: Final = 3600 * SECOND_NS
_HISTORY_MAX: Final = 1000


class ClusterControl:
    """``rotate_token`` replaces one role's join token in the store; ``signing`` tries out who is to sign certificates."""

    def __init__(self, context: Context, *, rotate_token: RotateToken | None, signing: Signing) -> None:
        self._context = context
        self._signing = signing
        self._store = context.store
        self._rotate_token = rotate_token

    def find(self) -> Cluster:
        """The one cluster. Raises ``UnavailableError`` before the first manager has founded it."""
        cluster = next(iter(self._store.clusters.all()), None)
        if cluster is None:
            raise errors.UnavailableError("the cluster is not founded yet", retry_after_s=1)
        return cluster

    async def update(
        self,
        spec: SwarmSpec,
        *,
        version: int | None,
        rotate_worker_token: bool = False,
        rotate_manager_token: bool = False,
        rotate_unlock_key: bool = False,
        rotate_sealing_key: bool = False,
    ) -> Cluster:
        """Write the settings, then rotate. Raises ``UserError``, ``UnsupportedError``, ``OutOfSequenceError``,
        ``ConflictError`` while the root is being rotated already, and ``UnavailableError`` when an external CA does not sign."""
        read_at = required_version(version, what="swarm")
        cluster = self.find()
        _check(cluster.spec, spec)
        if rotate_unlock_key and not spec.encryption_config.auto_lock_managers:
            raise errors.UserError(
                "there is no unlock key to rotate: managers are not locked (swarm update --autolock=true)"
            )
        rotated = [
            role
            for role, is_wanted in ((NodeRole.WORKER, rotate_worker_token), (NodeRole.MANAGER, rotate_manager_token))
            if is_wanted
        ]
        if rotated and self._rotate_token is None:
            raise errors.UnsupportedError("this manager cannot rotate join tokens")
        tx = await self._rotate_root(cluster, spec, read_at) if _wants_other_root(cluster.spec, spec) else None
        if tx is None:
            await self._try_external(cluster, spec)
            key = self._unlock_key(cluster, spec, rotate=rotate_unlock_key)
            changed = msgspec.structs.replace(
                cluster, spec=spec, unlock_key=key, version=read_at, updated_at=self._context.now()
            )
            is_same = spec == cluster.spec and key == cluster.unlock_key
            tx = Transaction().require(changed) if is_same else Transaction().replace(changed)
            # What lay on a disk unlocked, or locked with the key that is given up, is known to whoever copied it.
            if rotate_sealing_key or (key and key != cluster.unlock_key):
                tx = self._rotate_sealing_key(changed, tx, is_asked=rotate_sealing_key)
        await self._store.commit(tx)
        for role in rotated:
            assert self._rotate_token is not None
            await self._rotate_token(role)
        return self.find()

    def _unlock_key(self, cluster: Cluster, spec: SwarmSpec, *, rotate: bool) -> str:
        if not spec.encryption_config.auto_lock_managers:
            return ""
        if cluster.unlock_key and not rotate:
            return cluster.unlock_key
        return make_unlock_key(self._context.entropy(UNLOCK_BYTES))

    def _rotate_sealing_key(self, changed: Cluster, tx: Transaction, *, is_asked: bool) -> Transaction:
        authority = self._store.authorities.get(SEALING_AUTHORITY)
        if is_rotating(authority) and not is_asked:
            return tx
        key = self._context.entropy(KEY_BYTES)
        shown, begun = begin_sealing_rotation(authority, changed, key, self._context.now())
        return begun.replace(shown)

    def _authority(self) -> Authority:
        authority = self._store.authorities.get(ROOT_AUTHORITY)
        if authority is None:
            raise errors.UnavailableError("the certificate authority is not loaded yet", retry_after_s=1)
        return authority

    async def _rotate_root(self, cluster: Cluster, spec: SwarmSpec, read_at: Version) -> Transaction:
        authority, config = self._authority(), spec.ca_config
        root = wanted_root(cluster, authority, config, self._context.now())
        changed, rotating = begin_rotation(cluster, authority, root, self._context.now())
        await self._signing.prove(
            root, config=config, trusted_pem=f"{trusted_roots(authority)}\n{root.cert_pem}", cluster_id=cluster.id
        )
        # An authority that names no root signs for the one that is present now, not for the one that will be.
        cas = tuple(
            ca if ca.ca_cert else msgspec.structs.replace(ca, ca_cert=authority.certificate_pem)
            for ca in config.external_cas
        )
        # The key lives in the authority alone; no read of the settings may show it.
        public = msgspec.structs.replace(config, external_cas=cas, signing_ca_cert="", signing_ca_key="")
        spec = msgspec.structs.replace(spec, ca_config=public)
        return Transaction().replace(msgspec.structs.replace(changed, spec=spec, version=read_at)).replace(rotating)

    async def _try_external(self, cluster: Cluster, spec: SwarmSpec) -> None:
        """Other external authorities than before: somebody must sign afterwards, now and when a rotation is through."""
        config = spec.ca_config
        if config.external_cas == cluster.spec.ca_config.external_cas:
            return
        authority = self._authority()
        roots = [RootAuthority(cert_pem=authority.certificate_pem, key_pem=authority.key_pem)]
        if authority.rotation is not None:
            rotation = authority.rotation
            roots.append(RootAuthority(cert_pem=rotation.certificate_pem, key_pem=rotation.key_pem))
        for root in roots:
            await self._signing.prove(root, config=config, trusted_pem=trusted_roots(authority), cluster_id=cluster.id)


def _wants_other_root(before: SwarmSpec, after: SwarmSpec) -> bool:
    old, new = before.ca_config, after.ca_config
    return new.force_rotate != old.force_rotate or bool(new.signing_ca_cert or new.signing_ca_key)


def _check(before: SwarmSpec, after: SwarmSpec) -> None:
    check_labels(after.labels, what="swarm")
    parse_mode(after.labels)
    default_strategy(after.labels)
    check_quotas(after.labels)
    parse_allowed(after.labels)
    if after.name != before.name:
        raise errors.UserError(f"the swarm is named {before.name!r}; it cannot be renamed")
    if not -1 <= after.orchestration.task_history_retention_limit <= _HISTORY_MAX:
        raise errors.UserError(f"TaskHistoryRetentionLimit must be between -1 (unlimited) and {_HISTORY_MAX}")
    heartbeat_ns = after.dispatcher.heartbeat_period_ns
    if heartbeat_ns and heartbeat_ns < _HEARTBEAT_MIN_NS:
        raise errors.UserError("Dispatcher.HeartbeatPeriod cannot be less than 100 ms")
    expiry_ns = after.ca_config.node_cert_expiry_ns
    if expiry_ns and expiry_ns < _CERT_EXPIRY_MIN_NS:
        raise errors.UserError("CAConfig.NodeCertExpiry cannot be less than 1 hour")
    check_external(after.ca_config.external_cas)
    if after.raft.snapshot_interval < 1 or after.raft.keep_old_snapshots < 0:
        raise errors.UserError("Raft: SnapshotInterval must be positive, KeepOldSnapshots cannot be negative")
    settable = msgspec.structs.replace(
        before.raft,
        snapshot_interval=after.raft.snapshot_interval,
        keep_old_snapshots=after.raft.keep_old_snapshots,
    )
    if after.raft != settable:
        raise errors.UnsupportedError(
            "Raft: only SnapshotInterval and KeepOldSnapshots can be changed; the state engine's ticks are fixed"
        )
    if after.task_defaults != before.task_defaults:
        raise errors.UnsupportedError("TaskDefaults.LogDriver is not supported: set the log driver per service")
