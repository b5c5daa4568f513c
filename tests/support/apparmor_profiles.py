"""AppArmor profiles for tests, where the kernel has AppArmor."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fleet.node_runtime.apparmor import is_enabled

__all__ = ["needs_apparmor", "profile_loaded", "remove_profile"]

needs_apparmor = [
    pytest.mark.skipif(not is_enabled(), reason="not run: this kernel's AppArmor is off or missing"),
    pytest.mark.skipif(not shutil.which("apparmor_parser"), reason="not run: needs apparmor_parser (package apparmor)"),
]

_RULES = "file, capability, network, signal, ptrace, unix, mount, umount, pivot_root, deny /tmp/closed w,"


@contextmanager
def profile_loaded(name: str) -> Iterator[str]:
    """The name of a profile under which everything is allowed but to write /tmp/closed."""
    text = f"profile {name} flags=(attach_disconnected,mediate_deleted) {{ {_RULES} }}\n"
    subprocess.run(["apparmor_parser", "--add", "--skip-cache"], input=text, text=True, check=True, capture_output=True)
    try:
        yield name
    finally:
        remove_profile(name)


def remove_profile(name: str) -> None:
    """Take it out of the kernel; whoever runs under it is unconfined from then on."""
    text = f"profile {name} {{ }}\n"
    subprocess.run(["apparmor_parser", "--remove"], input=text, text=True, check=True, capture_output=True)
