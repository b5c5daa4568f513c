"""What this host remembers about its own network, as files: found again after a crash, gone with the boot.

    <run_dir>/netns/<id>            the namespace, bound on an empty file
    <run_dir>/sandboxes/<id>.json   written last when a sandbox is made, removed first when it goes: no file, no sandbox
    <run_dir>/networks/<id>.json    the last state a network was given
    <run_dir>/published.json        the last published ports
    <run_dir>/dns.sock, dns.pid     the DNS process
    <run_dir>/tunnel.sock, .pid     the tunnel process
    <state_dir>/tunnel.key          private key of this host's end of the tunnel
    <state_dir>/cursors.json        last address given on each local network, so that addresses rotate across boots

``run_dir`` should be a tmpfs: everything in it describes kernel objects that do not outlive the boot. Files are
replaced by rename and not flushed to disk, for the same reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fleet.errors import RuntimeFault
from fleet.network.topology import Interface, NetworkState, PublishedPort, SandboxSpec

__all__ = ["SandboxRecord", "Store"]

T = TypeVar("T")


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished sandbox. ``veths`` are the host's ends of its cables, in the order of ``interfaces``."""

    spec: SandboxSpec
    interfaces: tuple[Interface, ...]
    veths: tuple[str, ...]
    dns_port: int


class Store:
    """The files. All methods block shortly; a file that cannot be read as written is reported, not guessed at."""

    def __init__(self, *, run_dir: Path, state_dir: Path) -> None:
        self.run_dir = run_dir
        self.state_dir = state_dir

    def open(self) -> None:
        """Make the directories (mode 0700)."""
        for directory in (
            self.run_dir,
            self.run_dir / "netns",
            self.run_dir / "sandboxes",
            self.run_dir / "networks",
            self.state_dir,
        ):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def netns_path(self, sandbox_id: str) -> Path:
        """Where a sandbox's namespace is bound."""
        return self.run_dir / "netns" / sandbox_id

    def netns_ids(self) -> list[str]:
        """Sandboxes that have a namespace file, finished or not."""
        return sorted(path.name for path in (self.run_dir / "netns").iterdir())

    def sandboxes(self) -> list[SandboxRecord]:
        """All finished sandboxes."""
        return [self._read(path, SandboxRecord) for path in sorted((self.run_dir / "sandboxes").glob("*.json"))]

    def put_sandbox(self, record: SandboxRecord) -> None:
        """Declare a sandbox finished."""
        self._write(self.run_dir / "sandboxes" / f"{record.spec.id}.json", record)

    def drop_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox; unknown is fine."""
        (self.run_dir / "sandboxes" / f"{sandbox_id}.json").unlink(missing_ok=True)

    def networks(self) -> list[NetworkState]:
        """The last state of each network."""
        return [self._read(path, NetworkState) for path in sorted((self.run_dir / "networks").glob("*.json"))]

    def put_network(self, state: NetworkState) -> None:
        """Remember a network's state."""
        self._write(self.run_dir / "networks" / f"{state.network.id}.json", state)

    def drop_network(self, network_id: str) -> None:
        """Forget a network; unknown is fine."""
        (self.run_dir / "networks" / f"{network_id}.json").unlink(missing_ok=True)

    def published(self) -> tuple[PublishedPort, ...]:
        """The last published ports."""
        path = self.run_dir / "published.json"
        return self._read(path, tuple[PublishedPort, ...]) if path.exists() else ()

    def put_published(self, ports: tuple[PublishedPort, ...]) -> None:
        """Remember the published ports."""
        self._write(self.run_dir / "published.json", ports)

    def cursors(self) -> dict[str, str]:
        """Last address given, by network."""
        path = self.state_dir / "cursors.json"
        return self._read(path, dict[str, str]) if path.exists() else {}

    def put_cursors(self, cursors: dict[str, str]) -> None:
        """Remember the last addresses given."""
        self._write(self.state_dir / "cursors.json", cursors)

    def destroy(self) -> None:
        """Remove the files of ``run_dir`` (namespaces must be unmounted before) and the cursors."""
        for directory in ("netns", "sandboxes", "networks"):
            for path in (self.run_dir / directory).iterdir():
                path.unlink()
            (self.run_dir / directory).rmdir()
        for name in ("published.json", "dns.sock", "dns.pid", "dns.log", "tunnel.log", "forwarding", "forwarding6"):
            (self.run_dir / name).unlink(missing_ok=True)
        (self.state_dir / "cursors.json").unlink(missing_ok=True)

    def _read(self, path: Path, kind: Any) -> Any:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except msgspec.DecodeError as error:
            raise RuntimeFault(f"network record {path}: {error}; remove the file and its container") from error

    def _write(self, path: Path, value: Any) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(value))
        temporary.replace(path)
