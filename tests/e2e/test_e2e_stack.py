"""Stacks as people write them: files that include others, services that wait for others, content that changes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

MAIN = """
include: [base/stack.yml]
services:
  web:
    image: fleet/hello:1
    command: ["sh", "-c", "cat /page /run/secrets/word; trap 'exit 0' TERM; sleep 1000 & wait"]
    depends_on:
      db: {condition: service_healthy}
      prepare: {condition: service_completed_successfully}
    configs: [{source: page, target: /page}]
    secrets: [word]
    deploy: {replicas: 2, update_config: {order: start-first}}
  extra: {image: fleet/hello:1, command: [sleep, "1000"], profiles: [more]}
configs: {page: {file: page.txt}}
secrets: {word: {file: word.txt}}
"""
BASE = """
services:
  db:
    image: fleet/hello:1
    command: ["sh", "-c", "sleep 2; touch /tmp/ready; trap 'exit 0' TERM; sleep 1000 & wait"]
    healthcheck: {test: [CMD, test, -e, /tmp/ready], interval: 200ms, retries: 50}
  prepare:
    image: fleet/hello:1
    command: ["sh", "-c", "sleep 1; date"]
    depends_on: [db]
    deploy: {mode: replicated-job}
"""


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "base").mkdir()
    (tmp_path / "stack.yml").write_text(MAIN)
    (tmp_path / "base/stack.yml").write_text(BASE)
    (tmp_path / "page.txt").write_text("page one\n")
    (tmp_path / "word.txt").write_text("word one\n")
    return str(tmp_path / "stack.yml")


def said(lab: TestLab) -> set[str]:
    """What the running tasks of the service print first."""
    found = set()
    for task in lab.tasks("s_web"):
        out = lab.fleet("service", "logs", "--raw", str(task["ID"]), check=False).stdout
        found.add(" ".join(out.split()))
    return found


def began(lab: TestLab, service: str) -> str:
    """When its first task began to run."""
    created: list[str] = [task["CreatedAt"] for task in lab.get("/tasks", filters={"service": [service]})]
    return min(created)


def test_a_stack_from_its_first_deploy_through_new_content_to_a_rollback(lab: TestLab, file: str) -> None:
    assert lab.fleet("stack", "diff", "-c", file, "s", check=False).returncode == 1
    out = lab.fleet("stack", "deploy", "-c", file, "s").stdout
    assert out.index("Waiting for s_db (healthy)") < out.index("Creating service s_web")
    assert "s_extra" not in out
    (job,) = lab.get("/tasks", filters={"service": ["s_prepare"]})
    assert job["Status"]["State"] == "complete"
    assert job["Status"]["Timestamp"] < began(lab, "s_web"), "it was over before the other began"
    lab.wait_until(lambda: said(lab) == {"page one word one"}, 20, what="the first content")
    same = lab.fleet("stack", "diff", "-c", file, "s")
    assert same.stdout.strip() == "Stack s is up to date"

    folder = Path(file).parent
    (folder / "page.txt").write_text("page two\n")
    (folder / "word.txt").write_text("word two\n")
    shown = json.loads(lab.fleet("stack", "diff", "--format", "json", "-c", file, "s", check=False).stdout)
    (service,) = [each for each in shown if each["Kind"] == "service"]
    assert (service["Name"], len([line for line in service["Replicas"] if line.endswith(": replaced")])) == ("s_web", 2)
    before = {name: lab.get(f"/services/s_{name}")["Version"] for name in ("db", "prepare")}
    lab.fleet("stack", "deploy", "-c", file, "s")
    lab.wait_until(lambda: said(lab) == {"page two word two"}, 20, what="the second content")
    assert {name: lab.get(f"/services/s_{name}")["Version"] for name in ("db", "prepare")} == before

    lab.fleet("service", "rollback", "s_web")
    lab.wait_until(lambda: said(lab) == {"page one word one"}, 20, what="the first content is there again")
    lab.fleet("stack", "deploy", "-c", file, "--profile", "more", "s")
    lab.wait_until(
        lambda: said(lab) == {"page two word two"} and len(lab.tasks("s_extra")) == 1, 20, what="forward again"
    )
    lab.fleet("stack", "rm", "s")
    for noun in ("secrets", "configs"):
        assert [item for item in lab.get(f"/{noun}") if item["Spec"]["Name"].startswith("s_")] == []


def test_what_cannot_come_is_said_and_what_depends_on_it_is_not_made(lab: TestLab, file: str) -> None:
    broken = BASE.replace("sleep 1; date", "exit 3").replace(
        "mode: replicated-job", "mode: replicated-job, restart_policy: {condition: none}"
    )
    (Path(file).parent / "base/stack.yml").write_text(broken)
    done = lab.fleet("stack", "deploy", "-c", file, "b", check=False)
    assert done.returncode != 0
    assert "b_web was not deployed, since it depends on b_prepare" in done.stderr
    assert "b_web" not in lab.fleet("service", "ls").stdout
    lab.fleet("stack", "rm", "b")


def test_a_deploy_that_fails_is_rolled_back_as_a_whole_when_asked(lab: TestLab, tmp_path: Path) -> None:
    file = tmp_path / "stack.yml"
    stays = "{image: fleet/hello:1, command: [sleep, '1000'], networks: [one], configs: [page]}"
    (tmp_path / "page.txt").write_text("one\n")
    file.write_text(f"services: {{web: {stays}}}\nnetworks: {{one: {{}}}}\nconfigs: {{page: {{file: page.txt}}}}\n")

    def deploy() -> subprocess.CompletedProcess[str]:
        return lab.fleet("stack", "deploy", "--rollback-on-failure", "-c", str(file), "r", check=False)

    def state() -> dict[str, list[str]]:
        found = {noun: lab.get(f"/{noun}") for noun in ("services", "configs", "networks")}
        return {
            noun: sorted(name for item in items if (name := item.get("Name") or item["Spec"]["Name"]).startswith("r_"))
            for noun, items in found.items()
        }

    assert deploy().returncode == 0
    before, [task] = state(), lab.tasks("r_web")
    fails = "{image: fleet/hello:1, command: [sh, -c, 'exit 7'], networks: [two], deploy: {restart_policy: {condition: none}}}"
    (tmp_path / "page.txt").write_text("two\n")
    file.write_text(
        f"services: {{web: {stays.replace('1000', '2000')}, new: {fails}}}\n"
        "networks: {one: {}, two: {}}\nconfigs: {page: {file: page.txt}}\n"
    )
    failed = deploy()
    assert failed.returncode == 3, failed.stderr
    assert "service r_new" in failed.stderr and "non-zero exit (7)" in failed.stderr
    assert "Stack r is as it was before" in failed.stderr
    assert state() == before
    [now] = lab.tasks("r_web")
    assert now["Spec"] == task["Spec"]
    lab.fleet("stack", "rm", "r")
