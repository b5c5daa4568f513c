"""Who gets into the cluster: the first manager's founding, join requests, certificates, tokens, farewells.

A join request carries a token and a signing request; the answer is a certificate whose role is the token's. The node object
is written before the certificate leaves, so a node that has one is known. A repeated request (lost answer) makes a second
node object that never opens a session and can be removed as *down*; a certificate is never issued twice for one id.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.identity.authority import RootAuthority, create_root, import_certificate, import_root, root_info
from fleet.identity.keys import KeyRequest, NodeIdentity, make_identity
from fleet.identity.tokens import UNLOCK_BYTES, make_unlock_key, token_role
from fleet.logs import get_logger
from fleet.manager.external_ca import check_external
from fleet.manager.managers import MANAGERS_MAX, certified_role, change_node
from fleet.manager.root_rotation import new_tokens, signing_root, trusted_roots
from fleet.manager.signing import Signing
from fleet.model.cluster import ROOT_AUTHORITY, Authority, CaConfig, Cluster, SwarmSpec
from fleet.model.ids import ClusterId, NetworkId, NodeId
from fleet.model.network import INGRESS_NETWORK_NAME, Network, NetworkSpec
from fleet.model.node import (
    Availability,
    ManagerStatus,
    Node,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Reachability,
)
from fleet.store import Store, Transaction

__all__ = ["Admission", "JoinAnswer", "JoinRequest", "found_cluster"]

log = get_logger("admission")

_LABELS_MAX: Final = 64


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a joining node says; nothing in it is believed but the token and the proof of its key."""

    token: str
    csr_pem: str
    hostname: str
    address: str
    availability: Availability = Availability.ACTIVE
    labels: dict[str, str] = {}
    has_store: bool = False
    """Whether the node's daemon was told of an external state engine (``--store``)."""
    lacks: str = ""
    """Why the node could not keep a part of the state itself; said when it is to be a manager."""

    def __repr__(self) -> str:
        return f"JoinRequest(hostname={self.hostname!r}, address={self.address!r})"


class JoinAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a node needs to be one of the cluster's."""

    node_id: NodeId
    cluster_id: ClusterId
    certificate_pem: str
    ca_pem: str
    managers: tuple[str, ...]


async def found_cluster(
    store: Store,
    clock: Clock,
    new_id: Callable[[], str],
    *,
    cluster_id: ClusterId,
    node_id: NodeId,
    key: KeyRequest,
    spec: SwarmSpec,
    hostname: str,
    address: str,
    cluster_addr: str,
    availability: Availability,
    data_path_port: int,
    address_pools: tuple[str, ...],
    subnet_size: int,
    ingress_ipv6: bool = False,
) -> NodeIdentity:
    """``swarm init``: root, tokens, cluster object, ingress network and the first manager's node, in one transaction.

    ``ingress_ipv6``: published ports are to be open at the hosts' IPv6 addresses too.

    Raises ``UserError`` for settings of the root that cannot serve, ``UnavailableError`` when an external CA does not sign.
    """
    now = clock.now()
    root = _founding_root(cluster_id, spec.ca_config, now)
    certificate = await Signing(clock).issue(
        root,
        key.csr_pem,
        config=spec.ca_config,
        trusted_pem=root.cert_pem,
        node_id=node_id,
        role=NodeRole.MANAGER,
        cluster_id=cluster_id,
        addresses=(address,),
    )
    public = msgspec.structs.replace(spec.ca_config, signing_ca_cert="", signing_ca_key="")
    spec = msgspec.structs.replace(spec, ca_config=public)
    cluster = Cluster(
        id=cluster_id,
        spec=spec,
        tls_info=root_info(root.cert_pem),
        data_path_port=data_path_port,
        default_addr_pool=address_pools,
        subnet_size=subnet_size,
        join_tokens=new_tokens(root.cert_pem),
        unlock_key=make_unlock_key(secrets.token_bytes(UNLOCK_BYTES))
        if spec.encryption_config.auto_lock_managers
        else "",
        created_at=now,
        updated_at=now,
    )
    node = _sole_manager(
        node_id, hostname, address=address, cluster_addr=cluster_addr, now=now, availability=availability
    )
    ingress = Network(
        id=NetworkId(new_id()),
        spec=NetworkSpec(
            name=INGRESS_NETWORK_NAME, driver="overlay", scope="swarm", ingress=True, enable_ipv6=ingress_ipv6 or None
        ),
        created_at=now,
        updated_at=now,
    )
    authority = Authority(certificate_pem=root.cert_pem, key_pem=root.key_pem, created_at=now, updated_at=now)
    transaction = Transaction().create(cluster).create(authority).create(node).create(ingress)
    await store.commit(transaction)
    return make_identity(cert_pem=certificate, key_pem=key.key_pem, ca_pem=root.cert_pem)


def _founding_root(cluster_id: ClusterId, config: CaConfig, now: datetime) -> RootAuthority:
    check_external(config.external_cas)
    if config.signing_ca_key:
        if not config.signing_ca_cert:
            raise errors.UserError("a root key was given without its certificate")
        return import_root(config.signing_ca_cert, config.signing_ca_key, now)
    given = config.signing_ca_cert or next((ca.ca_cert for ca in config.external_cas if ca.ca_cert), "")
    if given:
        return import_certificate(given, now)
    if config.external_cas:
        raise errors.UserError(
            "a swarm that begins with an external CA needs the root certificate which that signs for: "
            "--external-ca protocol=cfssl,url=...,cacert=FILE"
        )
    return create_root(cluster_id, now)


def _sole_manager(
    node_id: NodeId,
    hostname: str,
    *,
    address: str,
    cluster_addr: str,
    now: datetime,
    availability: Availability = Availability.ACTIVE,
) -> Node:
    return Node(
        id=node_id,
        spec=NodeSpec(role=NodeRole.MANAGER, availability=availability),
        description=NodeDescription(hostname=hostname),
        status=NodeStatus(state=NodeState.UNKNOWN, addr=address),
        manager_status=ManagerStatus(leader=True, reachability=Reachability.REACHABLE, addr=cluster_addr),
        cluster_addr=cluster_addr,
        created_at=now,
        updated_at=now,
    )


async def take_over_cluster(
    store: Store, clock: Clock, *, node_id: NodeId, key: KeyRequest, hostname: str, address: str, cluster_addr: str
) -> NodeIdentity:
    """A restored cluster gets this host as its only manager; nodes find it if it is at the address they know."""
    now = clock.now()
    cluster = next(iter(store.clusters.all()), None)
    authority = store.authorities.get(ROOT_AUTHORITY)
    if cluster is None or authority is None:
        raise errors.UserError("the backup holds no cluster: its cluster object or root key is missing")
    certificate = await Signing(clock).issue(
        signing_root(authority),
        key.csr_pem,
        config=cluster.spec.ca_config,
        trusted_pem=trusted_roots(authority),
        node_id=node_id,
        role=NodeRole.MANAGER,
        cluster_id=cluster.id,
        addresses=(address,),
    )
    node = _sole_manager(node_id, hostname, address=address, cluster_addr=cluster_addr, now=now)
    await store.commit(Transaction().create(node))
    await release_other_managers(store, clock, own=node_id)
    return make_identity(cert_pem=certificate, key_pem=key.key_pem, ca_pem=trusted_roots(authority))


async def release_other_managers(store: Store, clock: Clock, *, own: NodeId) -> None:
    """Only ``own`` manages from now on: the others have no part in the state any more."""

    def released(node: Node) -> Node:
        spec = msgspec.structs.replace(node.spec, role=NodeRole.WORKER)
        return msgspec.structs.replace(node, spec=spec, manager_status=None)

    for node in store.nodes.all():
        if node.id != own and node.spec.role is NodeRole.MANAGER:
            await change_node(store, clock, node.id, released)


class Admission:
    """The managers' gate. ``signing``: who signs certificates; ``managers`` are the cluster addresses a new node is told;
    ``has_external_store``: the state is in an etcd of the operator's, which a new manager must have been told of."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        new_id: Callable[[], str],
        *,
        signing: Signing,
        managers: Callable[[], tuple[str, ...]],
        has_external_store: bool,
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._signing = signing
        self._managers = managers
        self._has_external_store = has_external_store

    def cluster(self) -> Cluster:
        """The cluster object. Raises ``UnavailableError`` before there is one."""
        for cluster in self._store.clusters.all():
            return cluster
        raise errors.UnavailableError("the cluster's state is not loaded yet")

    def root_pem(self) -> str:
        """The root certificate that join tokens name; public."""
        return signing_root(self._authority()).cert_pem

    def _authority(self) -> Authority:
        authority = self._store.authorities.get(ROOT_AUTHORITY)
        if authority is None:
            raise errors.UnavailableError("the certificate authority is not loaded yet", retry_after_s=1.0)
        return authority

    async def admit(self, request: JoinRequest) -> JoinAnswer:
        """Answer a join request. Raises ``UnauthorizedError`` for a wrong token, ``UserError`` for a bad request,
        ``UnsupportedError`` for a second manager while the state is in this manager's own database."""
        cluster = self.cluster()
        role = token_role(request.token, worker=cluster.join_tokens.worker, manager=cluster.join_tokens.manager)
        if role is NodeRole.MANAGER:
            self._check_manager(request)
        if not request.hostname or len(request.hostname) > 253 or len(request.labels) > _LABELS_MAX:
            raise errors.UserError("join request: hostname or labels are missing or too long")
        now = self._clock.now()
        node_id = NodeId(self._new_id())
        certificate = await self._certificate(request.csr_pem, node_id=node_id, role=role, address=request.address)
        node = Node(
            id=node_id,
            created_at=now,
            updated_at=now,
            spec=NodeSpec(role=role, availability=request.availability, labels=request.labels),
            description=NodeDescription(hostname=request.hostname),
            status=NodeStatus(state=NodeState.UNKNOWN, addr=request.address, message="joined, no session yet"),
        )
        await self._store.commit(Transaction().create(node))
        log.info("node admitted", node=node_id, hostname=request.hostname, role=role.value, address=request.address)
        return JoinAnswer(
            node_id=node_id,
            cluster_id=cluster.id,
            certificate_pem=certificate,
            ca_pem=trusted_roots(self._authority()),
            managers=self._managers(),
        )

    def _check_manager(self, request: JoinRequest) -> None:
        if not self._has_external_store and request.has_store:
            raise errors.UserError(
                "this cluster keeps its state itself: start fleetd on this host without --store, then join again"
            )
        if not self._has_external_store and request.lacks:
            raise errors.UserError(request.lacks)
        if self._has_external_store and not request.has_store:
            raise errors.UserError(
                "this cluster keeps its state in an etcd of yours: start fleetd on this host with the --store (and "
                "--store-cacert, --store-cert, --store-key) of the other managers, then join again"
            )
        count = sum(node.spec.role is NodeRole.MANAGER and not node.removed for node in self._store.nodes.all())
        if count >= MANAGERS_MAX:
            raise errors.UserError(
                f"this cluster has {count} managers already, the most that make sense: join as a worker"
            )

    async def _certificate(self, csr_pem: str, *, node_id: NodeId, role: NodeRole, address: str) -> str:
        cluster, authority = self.cluster(), self._authority()
        return await self._signing.issue(
            signing_root(authority),
            csr_pem,
            config=cluster.spec.ca_config,
            trusted_pem=trusted_roots(authority),
            node_id=node_id,
            role=role,
            cluster_id=cluster.id,
            addresses=(address,) if address else (),
        )

    async def renew(self, csr_pem: str, node_id: NodeId) -> str:
        """A fresh certificate for a member, in its present role. Raises ``ForbiddenError`` for one that is none, and
        ``UnavailableError`` when its role changed meanwhile, or an external authority gives no certificate."""
        node = self.member(node_id)
        role = certified_role(node)
        certificate = await self._certificate(csr_pem, node_id=node_id, role=role, address=node.status.addr)
        if certified_role(self.member(node_id)) is not role:  # an external authority takes its time
            raise errors.UnavailableError(f"node {node_id} was given another role meanwhile", retry_after_s=1)
        return certificate

    def member(self, node_id: NodeId) -> Node:
        """The node, if it is one of the cluster. Raises ``ForbiddenError`` otherwise: its certificate is cut off."""
        node = self._store.nodes.get(node_id)
        if node is None or node.removed:
            raise errors.ForbiddenError(f"node {node_id} is not a member of this cluster: it was removed")
        return node

    async def rotate_token(self, role: NodeRole) -> None:
        """Replace the secret half of a role's token; nodes that are in stay in."""
        cluster = self.cluster()
        fresh = new_tokens(self.root_pem())
        tokens = (
            msgspec.structs.replace(cluster.join_tokens, manager=fresh.manager)
            if role is NodeRole.MANAGER
            else msgspec.structs.replace(cluster.join_tokens, worker=fresh.worker)
        )
        changed = msgspec.structs.replace(cluster, join_tokens=tokens, updated_at=self._clock.now())
        await self._store.commit(Transaction().replace(changed))

    async def farewell(self, node_id: NodeId) -> None:
        """The node left by its own wish: it is *down* at once, so its tasks move and it can be removed; it manages no more."""
        node = self.member(node_id)
        status = msgspec.structs.replace(node.status, state=NodeState.DOWN, message="the node left the swarm")
        now = self._clock.now()
        spec = msgspec.structs.replace(node.spec, role=NodeRole.WORKER)
        gone = msgspec.structs.replace(node, spec=spec, status=status, down_since=now, updated_at=now)
        await self._store.commit(Transaction().replace_any(gone))
        log.info("node left", node=node_id, hostname=node.description.hostname)

    async def register(self, node_id: NodeId, address: str) -> None:
        """The node manages from now on: its cluster listener is at ``address``. Nothing if that is known, or not wanted any
        more."""

        def registered(node: Node) -> Node:
            if node.spec.role is not NodeRole.MANAGER:
                return node
            if node.manager_status is not None and node.manager_status.addr == address:
                return node
            before = node.manager_status or ManagerStatus()
            status = msgspec.structs.replace(before, reachability=Reachability.REACHABLE, addr=address)
            return msgspec.structs.replace(node, manager_status=status)

        await change_node(self._store, self._clock, node_id, registered)
