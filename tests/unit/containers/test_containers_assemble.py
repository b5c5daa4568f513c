"""How a request and an image become what is run: Docker's rules, case by case."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fleet.containers import ContainerConfig, FileMount, NetworkMode
from fleet.containers.assemble import (
    full_env,
    merge,
    merge_env,
    parse_signal,
    plan_capabilities,
    plan_spec,
    planned_mounts,
)
from fleet.containers.config import check_config
from fleet.containers.record import Container, MountPoint
from fleet.errors import RejectedFault, UserError
from fleet.images.config import ImageConfig
from fleet.model.service import HealthConfig, Mount
from fleet.network.topology import AttachmentSpec
from fleet.node_runtime.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES

IMAGE = ImageConfig(entrypoint=("/entry",), cmd=("a", "b"), env=("PATH=/bin", "X=1"), stop_signal="SIGQUIT", user="app")


def config(**fields: Any) -> ContainerConfig:
    return ContainerConfig(image="app", **fields)


@pytest.mark.parametrize(
    ("entrypoint", "command", "args"),
    [
        (None, None, ("/entry", "a", "b")),
        (None, ("c",), ("/entry", "c")),
        (("/other",), None, ("/other",)),
        (("/other",), ("c",), ("/other", "c")),
        ((), ("c",), ("c",)),
    ],
)
def test_arguments_follow_dockers_rules(entrypoint: Any, command: Any, args: tuple[str, ...]) -> None:
    assert merge(config(entrypoint=entrypoint, command=command), IMAGE).args == args


def test_no_command_at_all_is_rejected() -> None:
    with pytest.raises(RejectedFault, match="no command specified"):
        merge(config(), ImageConfig())


def test_image_defaults_give_way_to_the_request() -> None:
    merged = merge(config(user="me", stop_signal="TERM", working_dir="/w", labels={"a": "2"}), IMAGE)
    assert (merged.user, merged.stop_signal, merged.working_dir) == ("me", "TERM", "/w")
    assert merge(config(), IMAGE).user == "app" and merge(config(), IMAGE).stop_signal == "SIGQUIT"


def test_variables_are_replaced_added_and_removed() -> None:
    assert merge_env(("PATH=/bin", "X=1", "Y=2"), ("X=3", "Y", "Z=a=b")) == ("PATH=/bin", "X=3", "Z=a=b")


def made(**fields: Any) -> Container:
    request = config(**fields)
    return Container(
        id="0123456789abcdef" * 4, name="web", created_at=datetime(2026, 1, 1, tzinfo=UTC), config=request, image_id="i"
    )


def test_every_process_finds_path_and_hostname_and_term_on_a_terminal() -> None:
    env = full_env(made(tty=True))
    assert [text.partition("=")[0] for text in env] == ["PATH", "HOSTNAME", "TERM"]
    assert "HOSTNAME=0123456789ab" in env
    assert "HOSTNAME=web1" in full_env(made(hostname="web1"))


@pytest.mark.parametrize(
    ("own", "image", "test"),
    [
        (None, {"Test": ["CMD", "x"]}, ("CMD", "x")),
        (HealthConfig(test=("NONE",)), {"Test": ["CMD", "x"]}, None),
        (HealthConfig(interval_ns=5), {"Test": ["CMD-SHELL", "x y"]}, ("CMD", "/bin/sh", "-c", "x y")),
        (HealthConfig(test=("CMD", "z")), {"Test": ["CMD", "x"]}, ("CMD", "z")),
        (None, None, None),
    ],
)
def test_health_checks_are_merged_field_by_field(own: Any, image: Any, test: tuple[str, ...] | None) -> None:
    merged = merge(config(healthcheck=own), ImageConfig(cmd=("x",), healthcheck=image)).healthcheck
    assert (merged.test if merged else None) == test


def test_a_malformed_health_check_is_refused() -> None:
    with pytest.raises(UserError, match="health check: expected"):
        merge(config(healthcheck=HealthConfig(test=("RUN", "x"))), IMAGE)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("sigkill", 9),
        ("9", 9),
        (15, 15),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
    ],
)
def test_signals_by_name_and_number(text: Any, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["NOPE", "0", "65", "-1", "RTMIN+99", "TERM+1", "RTMIN+x", ""])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="invalid signal"):
        parse_signal(text)


def test_capabilities_follow_dockers_rules() -> None:
    assert plan_capabilities(add=(), drop=()) == tuple(c for c in ALL_CAPABILITIES if c in DEFAULT_CAPABILITIES)
    assert plan_capabilities(add=("cap_net_admin",), drop=("ALL",)) == ("NET_ADMIN",)
    assert "CHOWN" not in plan_capabilities(add=(), drop=("CHOWN",))
    everything = plan_capabilities(add=("ALL",), drop=("SYS_ADMIN",))
    assert set(ALL_CAPABILITIES) - set(everything) == {"SYS_ADMIN"}
    assert plan_capabilities(add=(), drop=(), privileged=True) == ALL_CAPABILITIES


def test_image_volumes_become_anonymous_unless_something_is_mounted_there() -> None:
    mounts = planned_mounts([Mount(type="bind", source="/x", target="/data/")], ["/data", "/other/../more", "/more"])
    assert [(m.type, m.target) for m in mounts] == [("bind", "/data/"), ("volume", "/more")]


def test_mounts_are_ordered_by_depth_and_the_users_own_hosts_file_wins() -> None:
    container = made(network_mode=NetworkMode.NONE)
    points = (
        MountPoint(kind="bind", target="/a/b/c", source="/1"),
        MountPoint(kind="bind", target="/a", source="/2"),
        MountPoint(kind="bind", target="/etc/hosts", source="/3"),
    )
    container = Container(**{f: getattr(container, f) for f in container.__struct_fields__} | {"mounts": points})
    spec = plan_spec(
        container, layer_dirs=[Path("/l")], directory=Path("/c"), file_sources=[("/run/secrets/s", Path("/t/0"))]
    )
    targets = [m.target for m in spec.mounts]
    assert targets.index("/a") < targets.index("/a/b/c")
    assert [m.source for m in spec.mounts if m.target == "/etc/hosts"] == ["/3"]
    secret = next(m for m in spec.mounts if m.target == "/run/secrets/s")
    assert secret.read_only
    assert spec.network == "none"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "-x"}, "invalid container name"),
        ({"env": ("=x",)}, "invalid environment variable"),
        ({"command": ("a\0b",)}, "NUL"),
        ({"hostname": "h" * 64}, "Linux allows 63"),
        ({"mounts": (Mount(target="x"),)}, "absolute path"),
        ({"mounts": (Mount(target="/"),)}, "root cannot be mounted over"),
        ({"mounts": (Mount(target="/a"), Mount(target="/b/../a"))}, "duplicate mount point: /a"),
        ({"mounts": (Mount(type="npipe", target="/a"),)}, "type 'npipe' is not supported"),
        ({"mounts": (Mount(type="bind", source="x", target="/a"),)}, "must be an absolute path"),
        ({"files": (FileMount(target="/s", data=b"x" * 1_000_001),)}, "more than the limit"),
        ({"stop_grace_s": -1.0}, "cannot be negative"),
        ({"networks": (AttachmentSpec(network_id="n", address=None, mac=None),)}, "cannot be combined"),
        ({"env": ("A=1",) * 5000}, "5000 environment variables"),
    ],
)
def test_what_is_wrong_by_itself_is_refused_before_anything_is_made(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check_config(config(**fields))
