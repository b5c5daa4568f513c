"""Where the command looks for a daemon when nobody says."""

from __future__ import annotations

import socket
from pathlib import Path

from fleet.cli.app import DEFAULT_HOST, default_host


def test_a_users_own_daemon_goes_before_the_hosts_if_it_is_there(tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert default_host(environment, uid=1000) == DEFAULT_HOST
    (tmp_path / "fleet").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "fleet" / "fleet.sock"))
        assert default_host(environment, uid=1000) == f"unix://{tmp_path}/fleet/fleet.sock"
        assert default_host(environment, uid=0) == DEFAULT_HOST
    assert default_host({}, uid=1000) == DEFAULT_HOST
