"""``features``: what this runtime can, as the specification's features structure tells it to engines."""

from __future__ import annotations

from fleet.node_runtime.capabilities import CAPABILITIES
from fleet.node_runtime.oci.bundle import ATTRIBUTES, HOOK_NAMES, NAMESPACES, PROPAGATION, VERSION
from fleet.node_runtime.seccomp_profile import ACTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["features"]


def features() -> dict[str, Any]:
    """The structure of features.md."""
    options = [*ATTRIBUTES, *(f"r{name}" for name in ATTRIBUTES), *PROPAGATION, *(f"r{name}" for name in PROPAGATION)]
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": list(HOOK_NAMES),
        "mountOptions": sorted({*options, "bind", "rbind", "idmap", "ridmap", "tmpcopyup", "defaults"}),
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": [f"CAP_{name}" for name in CAPABILITIES],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted([*ACTIONS, "SCMP_ACT_ERRNO"]),
                "operators": [f"SCMP_CMP_{word}" for word in ("EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE")],
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
    }
