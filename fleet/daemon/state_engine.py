"""Which engine keeps the cluster's state: a file of this host, or the etcd that ``--store`` names.

A mark in the store's folder remembers an etcd, so that a changed configuration is refused instead of starting with no
state at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fleet import errors
from fleet.clock import Clock
from fleet.daemon.config import DaemonConfig
from fleet.engines.sqlite import SqliteEngine
from fleet.model.ids import ClusterId
from fleet.store.engine import Engine

__all__ = ["choose_engine"]

_MARK: Final = "in-etcd"


def choose_engine(config: DaemonConfig, folder: Path, *, cluster_id: ClusterId, clock: Clock) -> Engine:
    """The engine, not started. ``folder`` exists. Blocks shortly; raises ``UserError`` if state was kept elsewhere so far."""
    mark = folder / _MARK
    if not config.store:
        if mark.exists():
            raise errors.UserError(
                f"the state of cluster {cluster_id} is kept in etcd: start fleetd with --store {mark.read_text().strip()}"
            )
        return SqliteEngine(folder, cluster_id=cluster_id, clock=clock)
    if (folder / "state.db").exists():
        raise errors.UserError(
            f"the state of cluster {cluster_id} is kept in {folder}: start fleetd without --store, or leave the swarm first"
        )
    from fleet.engines.etcd import EtcdEngine, EtcdTls

    if config.store_cacert is None and (config.store_cert or config.store_key):
        raise errors.UserError("--store-cert and --store-key need --store-cacert")
    tls = None
    if config.store_cacert is not None:
        tls = EtcdTls(ca=config.store_cacert, certificate=config.store_cert, key=config.store_key)
    scheme = "https" if tls else "http"
    endpoints = [f"{scheme}://{address}" for address in config.store.removeprefix("etcd://").split(",")]
    engine = EtcdEngine(endpoints, cluster_id=cluster_id, prefix=f"/fleet-cluster/{cluster_id}", tls=tls)
    mark.write_text(config.store + "\n")
    return engine
