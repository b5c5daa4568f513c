"""The daemon's choice of engine with ``--store``: state in a real etcd, and no silent change of place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from support.etcd import EtcdCluster, has_etcd

from fleet import errors
from fleet.clock import SystemClock
from fleet.daemon.config import DaemonConfig, load_config
from fleet.daemon.state_engine import choose_engine
from fleet.engines.etcd import EtcdEngine
from fleet.engines.etcd_wire import decode, encode, range_end
from fleet.model.ids import ClusterId, NodeId
from fleet.store import Store
from fleet.store.engine import Put, Txn

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not has_etcd(), reason="needs etcd (package etcd-server)")]
ID = ClusterId("c1")
NODE = NodeId("n1")


def test_state_is_kept_in_etcd_and_found_again(tmp_path: Path) -> None:
    async def main(cluster: EtcdCluster) -> None:
        addresses = ",".join(endpoint.removeprefix("http://") for endpoint in cluster.endpoints)
        config = load_config(["--store", f"etcd://{addresses}"])
        folder = tmp_path / "store"
        folder.mkdir()
        for turn in range(2):
            engine = choose_engine(config, folder, cluster_id=ID, node_id=NODE, clock=SystemClock())
            await engine.start()
            found = await engine.get("/x")
            assert (found is None) == (turn == 0)
            store = await Store.open(engine)
            await engine.commit(Txn(puts=(Put("/x", b"1"),)))
            assert (await engine.list("/x")).revision >= store.revision
            await store.close()
            await engine.close()
        with pytest.raises(errors.UserError, match="is kept in etcd"):
            choose_engine(load_config([]), folder, cluster_id=ID, node_id=NODE, clock=SystemClock())

    with EtcdCluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def _config(cluster: EtcdCluster) -> DaemonConfig:
    return load_config(["--store", "etcd://" + ",".join(e.removeprefix("http://") for e in cluster.endpoints)])


def test_an_empty_etcd_does_not_pass_for_the_clusters(tmp_path: Path) -> None:
    async def main(first: EtcdCluster, empty: EtcdCluster) -> None:
        folder = tmp_path / "store"
        folder.mkdir()
        nowhere = choose_engine(
            load_config(["--store", "etcd://127.0.0.1:1"]), folder, cluster_id=ID, node_id=NODE, clock=SystemClock()
        )
        with pytest.raises(errors.UnavailableError):
            await nowhere.start()
        await nowhere.close()
        assert not list(folder.iterdir()), "a failed first start leaves no mark"
        engine = choose_engine(_config(first), folder, cluster_id=ID, node_id=NODE, clock=SystemClock())
        await engine.start()
        await engine.commit(Txn(puts=(Put("/x", b"1"),)))
        await engine.close()
        for _ in range(2):  # being refused must not make it the place
            wrong = choose_engine(_config(empty), folder, cluster_id=ID, node_id=NODE, clock=SystemClock())
            with pytest.raises(
                errors.UserError, match=f"does not hold the state of cluster c1.*{first.endpoints[0][7:]}"
            ):
                await wrong.start()
            await wrong.close()
        again = choose_engine(_config(first), folder, cluster_id=ID, node_id=NODE, clock=SystemClock())
        await again.start()
        assert await again.get("/x")
        await again.close()

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with EtcdCluster(tmp_path / "a") as first, EtcdCluster(tmp_path / "b") as empty:
        asyncio.run(main(first, empty))


def test_erasing_leaves_nothing_of_the_cluster_and_all_of_its_neighbour(tmp_path: Path) -> None:
    async def main(cluster: EtcdCluster) -> None:
        one = EtcdEngine(cluster.endpoints, cluster_id="c1", prefix="/p/c1")
        two = EtcdEngine(cluster.endpoints, cluster_id="c12", prefix="/p/c12")
        for engine in (one, two):
            await engine.start()
            await engine.commit(Txn(puts=(Put("/x", b"1"),)))
        late = EtcdEngine(cluster.endpoints, cluster_id="c1", prefix="/p/c1")
        await late.start()
        with pytest.raises(errors.UnavailableError, match="nothing was deleted"):
            await one.erase()
        await late.erase()
        await late.erase()
        keys = {"key": encode("/p/"), "range_end": encode(range_end("/p/")), "keys_only": True}
        found = httpx.post(cluster.endpoints[0] + "/v3/kv/range", json=keys).json()["kvs"]
        assert {decode(item["key"]).split(b"/")[2] for item in found} == {b"c12"}
        assert await two.get("/x")
        for engine in (one, two, late):
            await engine.close()

    with EtcdCluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def test_state_in_a_file_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with pytest.raises(errors.UserError, match="without --store"):
        choose_engine(
            load_config(["--store", "etcd://h:1"]), tmp_path, cluster_id=ID, node_id=NODE, clock=SystemClock()
        )


def test_a_store_that_is_no_etcd_address_is_refused() -> None:
    with pytest.raises(errors.UserError, match="expected etcd://"):
        load_config(["--store", "consul://h:1"])
