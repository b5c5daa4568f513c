"""What a container can not have where fleetd runs as an ordinary user."""

from __future__ import annotations

import dataclasses

import pytest

from fleet.containers.config import ContainerConfig, NetworkMode
from fleet.containers.without_root import adapt, discard_limits, warnings_of
from fleet.errors import UnsupportedError
from fleet.node_runtime.spec import ResourceLimits


def test_limits_are_discarded_and_each_is_told() -> None:
    config = ContainerConfig(image="x", resources=ResourceLimits(memory_bytes=1 << 26, nano_cpus=1))
    assert adapt(config, ()).resources == ResourceLimits()
    assert len(warnings_of(config, ())) == 2
    assert warnings_of(ContainerConfig(image="x"), ()) == []


def test_limits_whose_controllers_were_given_are_kept() -> None:
    limits = ResourceLimits(memory_bytes=1 << 26, pids_limit=9, nano_cpus=1, oom_kill_disable=True)
    given = {"memory", "pids"}
    kept = adapt(ContainerConfig(image="x", resources=limits), given).resources
    assert kept == ResourceLimits(memory_bytes=1 << 26, pids_limit=9)
    assert discard_limits(limits, given) == [
        "fleetd runs without root and was not given the cgroup controller cpu. Limitation discarded: CPU.",
        "fleetd runs without root and cgroup v2 has none. Limitation discarded: OOM killer.",
    ]
    assert discard_limits(kept, given) == []


def test_every_limit_has_a_word() -> None:
    for field in dataclasses.fields(ResourceLimits):
        value = {"str": "0", "bool": True}.get(str(field.type), 5)
        assert len(discard_limits(dataclasses.replace(ResourceLimits(), **{field.name: value}), ())) == 1, field.name


def test_the_hosts_network_is_not_the_machines_and_that_is_said() -> None:
    assert "publish" in warnings_of(ContainerConfig(image="x", network_mode=NetworkMode.HOST), ())[0]


@pytest.mark.parametrize("asked", [{"pid_mode": "host"}, {"userns_mode": "remap"}])
def test_what_cannot_be_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="without root"):
        adapt(ContainerConfig(image="x", **asked), ())
