"""Forwarding of the host: turned on because containers need it, without making the host a router for strangers.

IPv6 is turned on only when a network here has it, because a Linux host that forwards IPv6 forgets the default route it learned
from its router's advertisements, unless told otherwise for each link (``accept_ra`` 2, kernel ip-sysctl documentation). That is
done first, for the links that listen to advertisements today, and remembered to be undone.
"""

from __future__ import annotations

from pathlib import Path

from fleet.network.namespaces import write_sysctl

__all__ = ["enable_forwarding", "enable_forwarding6", "restore_forwarding"]

_SYSCTL, _SYSCTL6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
_ROOT = Path("/proc/sys")


def enable_forwarding(run_dir: Path) -> bool:
    """Turn forwarding on in the calling thread's namespace; returns whether it was us, now or earlier in this boot.

    If it was, the host was no router before, and rules must keep it from forwarding between links that are not ours. A mark
    in ``run_dir`` remembers it until the next boot.
    """
    marker, boot_id = run_dir / "forwarding", _boot_id()
    if _is_on(_SYSCTL):
        return marker.exists() and marker.read_text() == boot_id
    marker.write_text(boot_id)
    write_sysctl(_SYSCTL, "1")
    return True


def enable_forwarding6(run_dir: Path) -> bool:
    """The same for IPv6; the mark names the links whose ``accept_ra`` was changed, one a line behind the boot's id."""
    marker, boot_id = run_dir / "forwarding6", _boot_id()
    known = marker.read_text().splitlines() if marker.exists() else []
    ours = known[:1] == [boot_id]
    if _is_on(_SYSCTL6):
        return ours
    listening = [
        path.parent.name
        for path in sorted((_ROOT / "net/ipv6/conf").glob("*/accept_ra"))
        if path.parent.name not in ("all", "default") and _read(path) == "1"
    ]
    links = dict.fromkeys([*(known[1:] if ours else ()), *listening])
    marker.write_text("\n".join([boot_id, *links]))
    for link in listening:
        write_sysctl(f"net/ipv6/conf/{link}/accept_ra", "2")
    write_sysctl(_SYSCTL6, "1")
    return True


def restore_forwarding(run_dir: Path) -> None:
    """Turn forwarding off again if it was us who turned it on."""
    marker, marker6 = run_dir / "forwarding", run_dir / "forwarding6"
    if marker.exists():
        write_sysctl(_SYSCTL, "0")
        marker.unlink()
    if marker6.exists():
        write_sysctl(_SYSCTL6, "0")
        for link in marker6.read_text().splitlines()[1:]:
            if _read(_ROOT / f"net/ipv6/conf/{link}/accept_ra") == "2":
                write_sysctl(f"net/ipv6/conf/{link}/accept_ra", "1")
        marker6.unlink()


def _is_on(name: str) -> bool:
    return _read(_ROOT / name) == "1"


def _boot_id() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def _read(path: Path) -> str:
    """Empty for a link that is gone."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
