"""Which engine keeps the cluster's state: a file of this host, or the etcd that ``--store`` names.

A mark in the store's folder, written once the state's place in etcd is claimed, remembers the address, so that a changed
configuration or an empty etcd is refused instead of starting with no state at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fleet import errors
from fleet.clock import Clock
from fleet.daemon.config import DaemonConfig
from fleet.durable import write_durably
from fleet.engines.sqlite import SqliteEngine
from fleet.logs import get_logger
from fleet.model.ids import ClusterId, NodeId
from fleet.store.engine import Engine

__all__ = ["choose_engine", "erase_state", "prefix_of", "write_mark"]

log = get_logger("state")

_MARK: Final = "in-etcd"


def prefix_of(cluster_id: ClusterId) -> str:
    """Where a cluster's state is within an etcd."""
    return f"/fleet-cluster/{cluster_id}"


def choose_engine(
    config: DaemonConfig, folder: Path, *, cluster_id: ClusterId, node_id: NodeId, clock: Clock
) -> Engine:
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
    known = mark.read_text().strip() if mark.exists() else ""
    return EtcdEngine(
        endpoints,
        cluster_id=cluster_id,
        prefix=prefix_of(cluster_id),
        client=node_id,
        tls=tls,
        known_at=known,
        claimed=lambda: write_mark(mark, config.store),
    )


async def erase_state(engine: Engine | None, config: DaemonConfig, cluster_id: ClusterId) -> None:
    """Remove what the cluster keeps outside this host; what cannot be removed now is named in the log."""
    if not config.store:
        return
    from fleet.engines.etcd import EtcdEngine

    try:
        if not isinstance(engine, EtcdEngine):
            raise errors.UnavailableError("it was not reached since fleetd started")
        await engine.erase()
    except errors.UnavailableError as cause:
        log.warning(
            "state left in etcd; remove it with: etcdctl del --prefix",
            prefix=f"{prefix_of(cluster_id)}/",
            store=config.store,
            cause=str(cause),
        )


def write_mark(mark: Path, text: str) -> None:
    """Durably, and whole or not at all: a lost mark would let an empty etcd pass for the cluster's. Blocks."""
    write_durably(mark, f"{text}\n".encode())
