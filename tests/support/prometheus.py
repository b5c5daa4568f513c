"""A real Prometheus for tests: on loopback, with its data in a folder of the test's, asked through its own HTTP API."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

_START_S = 60.0


class Prometheus:
    """See ``running_prometheus``."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        """``data`` of ``/api/v1/PATH``."""
        with urlopen(f"{self._base}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        return list(self.get("query", query=expression)["result"])

    def targets(self, job: str) -> list[dict[str, Any]]:
        """Those that are scraped under ``job`` of the configuration."""
        return [each for each in self.get("targets", state="active")["activeTargets"] if each["scrapePool"] == job]

    def dropped(self) -> list[dict[str, str]]:
        """Labels of targets that were discovered and are not scraped."""
        return [each["discoveredLabels"] for each in self.get("targets", state="dropped")["droppedTargets"]]

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self._base}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextmanager
def running_prometheus(folder: Path, configuration: str) -> Iterator[Prometheus]:
    """With ``configuration`` (YAML); ended at the end. The test is skipped where there is no Prometheus."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("not run: needs prometheus (package prometheus; scripts/setup installs it)")
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    file.write_text(configuration)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        prometheus = Prometheus(port)
        end = time.monotonic() + _START_S
        while not prometheus.is_ready():
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"prometheus did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield prometheus
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
