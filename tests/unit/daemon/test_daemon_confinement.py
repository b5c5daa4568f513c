"""What people are told of AppArmor: ``info``, the doctor; and what services may say of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.objects import make_task

from fleet.agent.container_task import container_config
from fleet.agent.engine_facts import EngineFacts
from fleet.containers.apparmor import AppArmor
from fleet.daemon.doctor import HostDoctor
from fleet.daemon.http.system import _apparmor_warning, _security
from fleet.model.node import NodeDescription
from fleet.model.service import ContainerSpec, Privileges, TaskSpec
from fleet.network.doctor.finding import Check, Level
from fleet.network.host import HostNetwork


def an_apparmor(root: Path, *, loaded: bool, why_not: str = "") -> AppArmor:
    made = AppArmor(root)
    made.is_on, made.by_default, made.why_not = True, loaded, why_not
    return made


def info_of(apparmor: AppArmor) -> tuple[list[str], list[str]]:
    """(security options, warnings)."""
    engine = cast(Any, SimpleNamespace(apparmor=apparmor, user_namespaces=SimpleNamespace(by_default=False)))
    facts = EngineFacts(cgroup_version="2", seccomp=True, apparmor=True)
    return _security(facts, engine, rootless=False), _apparmor_warning(engine)


def test_info_names_apparmor_only_where_containers_are_confined(tmp_path: Path) -> None:
    options, warnings = info_of(an_apparmor(tmp_path, loaded=True))
    assert options[:2] == ["name=apparmor", "name=seccomp,profile=builtin"]
    assert warnings == []
    options, warnings = info_of(an_apparmor(tmp_path, loaded=False, why_not="apparmor_parser is not installed"))
    assert "name=apparmor" not in options
    assert warnings == ["WARNING: containers run without an AppArmor profile: apparmor_parser is not installed"]
    options, warnings = info_of(AppArmor(tmp_path))  # a kernel without it
    assert "name=apparmor" not in options
    assert warnings == []


class QuietNetwork:
    """Nothing to be found on it."""

    async def look(self, _question: object) -> list[Any]:
        return []


def test_the_doctor_tells_of_it(tmp_path: Path) -> None:
    def alone(apparmor: AppArmor) -> list[Any]:
        return asyncio.run(HostDoctor(cast(HostNetwork, QuietNetwork()), apparmor=apparmor).alone(()))

    assert alone(an_apparmor(tmp_path, loaded=True)) == []
    [finding] = alone(an_apparmor(tmp_path, loaded=False, why_not="apparmor_parser is not installed"))
    assert (finding.check, finding.level) == (Check.HOST, Level.NOTE)
    assert finding.says == "containers run without an AppArmor profile: apparmor_parser is not installed"
    assert "restart the containers" in finding.remedy


@pytest.mark.parametrize(
    ("privileges", "profile"),
    [
        (None, ""),
        (Privileges(), ""),
        (Privileges(app_armor={"Mode": "default"}), ""),
        (Privileges(app_armor={"Mode": "disabled"}), "unconfined"),
    ],
)
def test_a_service_may_decline_the_profile(privileges: Privileges | None, profile: str) -> None:
    spec = TaskSpec(container_spec=ContainerSpec(image="app", privileges=privileges))
    task = make_task(spec=spec)
    assert container_config(task, cast(Any, None), NodeDescription(hostname="n")).apparmor == profile
