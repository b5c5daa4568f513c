"""A lab with the helpers of end-to-end tests: the real commands against it, reads of its API, waiting on conditions."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fleet import errors
from fleet.lab import Lab

REPOSITORY = Path(__file__).parents[2]


class TestLab(Lab):
    """A lab with the helpers of the end-to-end tests."""

    __test__ = False

    def command_environment(self, host: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLEET_", "DOCKER_"))}
        return {**kept, **self.env(host), "PYTHONWARNINGS": "error"}

    def fleet(
        self,
        *args: str,
        host: str = "m1",
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``fleet ARGS`` against the host's daemon; with ``check`` a failure is the test's, with what was printed."""
        argv = [sys.executable, "-m", "fleet.cli.main", *args]
        return self._run(argv, host=host, check=check, stdin=stdin, timeout_s=timeout_s, env=env or {})

    def docker(
        self, *args: str, host: str = "m1", check: bool = True, stdin: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker client against the host's daemon; the test is skipped where there is none."""
        client = shutil.which("docker")
        if client is None:
            pytest.skip("not run: needs the docker client (package docker.io or docker-cli; scripts/setup installs it)")
        return self._run([client, *args], host=host, check=check, stdin=stdin, timeout_s=timeout_s, env={})

    def _run(
        self, argv: list[str], *, host: str, check: bool, stdin: str | None, timeout_s: float, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv,
            env={**self.command_environment(host), **env},
            cwd=REPOSITORY,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def get(self, path: str, *, host: str = "m1", **query: object) -> Any:
        """``GET`` from the host's engine API."""
        with self.client(host) as client:
            return client.get(path, **query)

    def tasks(self, service: str, *, state: str = "running") -> list[dict[str, Any]]:
        """The service's tasks in that observed state."""
        found = self.get("/tasks", filters={"service": [service]})
        return [task for task in found if task["Status"]["State"] == state]

    def wait_until(self, condition: Callable[[], object], deadline_s: float, *, what: str = "") -> None:
        """Poll until it holds; the test fails after the deadline with what did not come true, and the tasks there are."""
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"after {deadline_s:g} s still not: {what or condition}\n{self._situation()}")
            time.sleep(0.1)

    def wait_until_all_take_tasks(self, deadline_s: float = 60.0) -> None:
        """Each node runs a task of a job that is made and removed for this; needs ``load_hello``.

        That a node is *ready* does not say so: for some seconds after its daemon or the manager was restarted that is what was
        written before, and the scheduler passes over a node that has no session yet.
        """
        name = f"proof-{secrets.token_hex(4)}"
        container = {"Image": "fleet/hello:1", "Command": ["true"]}
        template = {"ContainerSpec": container, "RestartPolicy": {"Condition": "none"}}
        with self.client("m1") as client:
            client.post("/services/create", {"Name": name, "TaskTemplate": template, "Mode": {"GlobalJob": {}}})
            try:
                self.wait_until(
                    lambda: (
                        {n["ID"] for n in self.get("/nodes")}
                        <= {t["NodeID"] for t in self.tasks(name, state="complete")}
                    ),
                    deadline_s,
                    what="every node takes tasks",
                )
            finally:
                client.delete(f"/services/{name}")

    def _situation(self) -> str:
        lines = [f"{row.name} {row.state}, fleetd {row.daemon}" for row in self.status()]
        try:
            lines += [
                f"{task.get('ServiceID', '')[:8]}.{task.get('Slot', '')} {task['DesiredState']} {json.dumps(task['Status'])}"
                for task in self.get("/tasks")
            ]
        except (errors.FleetError, OSError) as cause:  # the test has failed already; this only tells more
            lines.append(f"tasks unknown: {cause}")
        return "\n".join(lines)

    def load_hello(self, host: str = "m1") -> None:
        """Import ``fleet/hello:1`` (busybox) at the host."""
        environment = self.command_environment(host)
        subprocess.run(
            [REPOSITORY / "scripts/hello-image"], env=environment, check=True, capture_output=True, timeout=60
        )
