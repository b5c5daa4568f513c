"""What this host remembers of its cluster between runs: ``<data_root>/swarm/state.json`` beside the node's identity.

Written by rename with fsync. Present = this host is a member (or was asked to be); removed = it is not.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from fleet import errors
from fleet.durable import write_durably
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

__all__ = ["SwarmState", "SwarmStateFile"]


class SwarmState(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses are ``host:port``, but for ``advertise_address`` and ``data_path_address``, which have no port."""

    format: int = 1
    cluster_id: ClusterId
    node_id: NodeId
    role: NodeRole
    listen_address: str
    advertise_address: str
    data_path_address: str = ""
    cluster_port: int
    managers: tuple[str, ...]


class SwarmStateFile:
    """The file in ``folder``; blocking."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "state.json"

    def load(self) -> SwarmState | None:
        """``None`` when this host is in no cluster. Raises ``UserError`` when the file does not decode."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=SwarmState)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as cause:
            raise errors.UserError(
                f"{self._path}: does not decode: {cause}; restore it from a backup, or remove {self.folder} and join again"
            ) from cause

    def save(self, state: SwarmState) -> None:
        """Durable when it returns. Raises ``OSError``."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._path, msgspec.json.format(msgspec.json.encode(state)))

    def remove(self) -> None:
        """Forget the cluster; idempotent."""
        self._path.unlink(missing_ok=True)
