"""The daemon's choice of engine with ``--store``: state in a real etcd, and no silent change of place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.etcd import EtcdCluster, has_etcd

from fleet import errors
from fleet.clock import SystemClock
from fleet.daemon.config import load_config
from fleet.daemon.state_engine import choose_engine
from fleet.model.ids import ClusterId
from fleet.store import Store
from fleet.store.engine import Put, Txn

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(not has_etcd(), reason="needs etcd (package etcd-server)")]
ID = ClusterId("c1")


def test_state_is_kept_in_etcd_and_found_again(tmp_path: Path) -> None:
    async def main(cluster: EtcdCluster) -> None:
        addresses = ",".join(endpoint.removeprefix("http://") for endpoint in cluster.endpoints)
        config = load_config(["--store", f"etcd://{addresses}"])
        folder = tmp_path / "store"
        folder.mkdir()
        for turn in range(2):
            engine = choose_engine(config, folder, cluster_id=ID, clock=SystemClock())
            await engine.start()
            found = await engine.get("/x")
            assert (found is None) == (turn == 0)
            store = await Store.open(engine)
            await engine.commit(Txn(puts=(Put("/x", b"1"),)))
            assert (await engine.list("/x")).revision >= store.revision
            await store.close()
            await engine.close()
        with pytest.raises(errors.UserError, match="is kept in etcd"):
            choose_engine(load_config([]), folder, cluster_id=ID, clock=SystemClock())

    with EtcdCluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def test_state_in_a_file_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with pytest.raises(errors.UserError, match="without --store"):
        choose_engine(load_config(["--store", "etcd://h:1"]), tmp_path, cluster_id=ID, clock=SystemClock())


def test_a_store_that_is_no_etcd_address_is_refused() -> None:
    with pytest.raises(errors.UserError, match="expected etcd://"):
        load_config(["--store", "consul://h:1"])
