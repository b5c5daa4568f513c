"""Steps of a root rotation: none begins before every node has taken the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_node

from fleet import errors
from fleet.identity.authority import RootAuthority, create_root, root_digest, root_info
from fleet.identity.tokens import parse_token
from fleet.manager.root_rotation import (
    begin_rotation,
    new_tokens,
    next_step,
    rotation_state,
    signing_root,
    trust_of,
    trusted_roots,
    wanted_root,
)
from fleet.model.cluster import Authority, CaConfig, Cluster
from fleet.model.common import TlsInfo
from fleet.model.ids import ClusterId
from fleet.model.node import Node
from fleet.store import Store, Transaction

CLUSTER = ClusterId("c" * 25)
OLD = create_root(CLUSTER, NOW)


def cluster_of(root: RootAuthority) -> Cluster:
    return Cluster(
        id=CLUSTER,
        created_at=NOW,
        updated_at=NOW,
        tls_info=root_info(root.cert_pem),
        join_tokens=new_tokens(root.cert_pem),
    )


def authority_of(root: RootAuthority) -> Authority:
    return Authority(created_at=NOW, updated_at=NOW, certificate_pem=root.cert_pem, key_pem=root.key_pem)


def shows(node: Node, *, trusts: str, issuer: str) -> Node:
    info = msgspec.structs.replace(root_info(issuer), trust_root=trusts)
    return msgspec.structs.replace(node, description=msgspec.structs.replace(node.description, tls_info=info))


class World:
    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def cluster(self) -> Cluster:
        return next(iter(self.store.clusters.all()))

    @property
    def authority(self) -> Authority:
        return next(iter(self.store.authorities.all()))

    async def begin(self, config: CaConfig | None = None) -> None:
        root = wanted_root(self.cluster, self.authority, config or CaConfig(), NOW)
        cluster, authority = begin_rotation(self.cluster, self.authority, root, NOW)
        await self.store.commit(Transaction().replace(cluster).replace(authority))

    async def step(self) -> bool:
        step = next_step(self.cluster, self.authority, self.store.nodes.all(), NOW)
        if step is not None:
            await self.store.commit(step)
        return step is not None

    async def show(self, name: str, *, trusts: str, issuer: str) -> None:
        node = self.store.nodes.get(f"node-{name}")
        assert node is not None
        await self.store.commit(Transaction().replace(shows(node, trusts=trusts, issuer=issuer)))


def run(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        await store.commit(Transaction().create(cluster_of(OLD)).create(authority_of(OLD)))
        for name in ("n1", "n2"):
            node = shows(make_node(name), trusts=OLD.cert_pem, issuer=OLD.cert_pem)
            await store.commit(Transaction().create(node))
        try:
            await body(World(store))
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())


def test_each_step_waits_for_the_last_node() -> None:
    async def body(world: World) -> None:
        tokens = world.cluster.join_tokens
        await world.begin()
        rotation = world.authority.rotation
        assert rotation is not None
        both, new = trusted_roots(world.authority), rotation.certificate_pem
        assert OLD.cert_pem.strip() in both and new.strip() in both
        assert signing_root(world.authority).cert_pem == OLD.cert_pem
        assert world.cluster.root_rotation_in_progress
        assert world.cluster.tls_info.trust_root == OLD.cert_pem  # until the end; the issuer is the wanted one at once
        assert world.cluster.tls_info.cert_issuer_public_key == root_info(new).cert_issuer_public_key

        await world.show("n1", trusts=both, issuer=OLD.cert_pem)
        assert not await world.step()
        assert str(rotation_state(world.authority, world.store.nodes.all())).startswith("1 of 2 nodes trust")
        await world.show("n2", trusts=both, issuer=OLD.cert_pem)
        assert await world.step()

        assert signing_root(world.authority).cert_pem == new
        assert parse_token(world.cluster.join_tokens.worker).digest == root_digest(new)
        assert world.cluster.join_tokens != tokens
        assert not await world.step()
        await world.show("n1", trusts=both, issuer=new)
        assert not await world.step()
        state = rotation_state(world.authority, world.store.nodes.all())
        assert state is not None and state.missing == ("n2",)
        await world.show("n2", trusts=both, issuer=new)
        assert await world.step()

        assert world.authority.rotation is None
        assert trusted_roots(world.authority) == new
        assert world.cluster.tls_info == root_info(new)
        assert not world.cluster.root_rotation_in_progress
        assert OLD.key_pem not in msgspec.json.encode(world.authority).decode()
        assert not await world.step()

    run(body)


def test_a_removed_node_is_not_waited_for_and_named_to_all() -> None:
    async def body(world: World) -> None:
        await world.begin()
        await world.show("n1", trusts=trusted_roots(world.authority), issuer=OLD.cert_pem)
        node = world.store.nodes.get("node-n2")
        assert node is not None
        assert not await world.step()
        await world.store.commit(Transaction().replace(msgspec.structs.replace(node, removed=True)))
        assert await world.step()
        trust = trust_of(world.store)
        assert trust is not None and trust.removed == ("node-n2",)

    run(body)


def test_a_second_rotation_is_refused_while_one_goes_on() -> None:
    async def body(world: World) -> None:
        await world.begin()
        with pytest.raises(errors.ConflictError, match="being rotated already"):
            await world.begin()

    run(body)


def test_a_given_root_must_be_whole_and_another() -> None:
    async def body(world: World) -> None:
        other = create_root(CLUSTER, NOW)
        for cert, key, words in (
            (other.cert_pem, "", "needs its key"),
            ("", other.key_pem, "without its certificate"),
            (other.cert_pem, OLD.key_pem, "not the key of the given certificate"),
            (OLD.cert_pem, OLD.key_pem, "is the present one"),
            ("junk", other.key_pem, "not a certificate"),
        ):
            with pytest.raises(errors.UserError, match=words):
                await world.begin(CaConfig(signing_ca_cert=cert, signing_ca_key=key))
        assert world.authority.rotation is None
        await world.begin(CaConfig(signing_ca_cert=other.cert_pem, signing_ca_key=other.key_pem))
        assert world.authority.rotation is not None
        assert root_info(world.authority.rotation.certificate_pem) == root_info(other.cert_pem)

    run(body)


def test_what_a_node_shows_of_itself_may_be_nothing() -> None:
    async def body(world: World) -> None:
        node = world.store.nodes.get("node-n1")
        assert node is not None
        bare = msgspec.structs.replace(node, description=msgspec.structs.replace(node.description, tls_info=TlsInfo()))
        await world.store.commit(Transaction().replace(bare))
        await world.begin()
        state = rotation_state(world.authority, world.store.nodes.all())
        assert state is not None and state.missing == ("n1", "n2")

    run(body)
