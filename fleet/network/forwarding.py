"""IPv4 forwarding of the host: turned on because containers need it, without making the host a router for strangers."""

from __future__ import annotations

from pathlib import Path

from fleet.network.namespaces import write_sysctl

__all__ = ["enable_forwarding", "restore_forwarding"]

_SYSCTL = "net/ipv4/ip_forward"


def enable_forwarding(run_dir: Path) -> bool:
    """Turn forwarding on in the calling thread's namespace; returns whether it was us, now or earlier in this boot.

    If it was, the host was no router before, and rules must keep it from forwarding between links that are not ours. A mark
    in ``run_dir`` remembers it until the next boot.
    """
    marker = run_dir / "forwarding"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if (Path("/proc/sys") / _SYSCTL).read_text().strip() == "1":
        return marker.exists() and marker.read_text() == boot_id
    marker.write_text(boot_id)
    write_sysctl(_SYSCTL, "1")
    return True


def restore_forwarding(run_dir: Path) -> None:
    """Turn forwarding off again if it was us who turned it on."""
    marker = run_dir / "forwarding"
    if marker.exists():
        write_sysctl(_SYSCTL, "0")
        marker.unlink()
