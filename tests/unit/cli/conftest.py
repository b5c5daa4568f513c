"""The command line run in this process against a fake daemon."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.cli.main import run
from tests.support.fake_engine import FakeEngine


@dataclasses.dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Fleet = Callable[..., Ran]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with tempfile.TemporaryDirectory(prefix="fl-") as folder, FakeEngine(Path(folder) / "s") as fake:
        yield fake


@pytest.fixture
def fleet(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> Fleet:
    def call(*arguments: str, environment: dict[str, str] | None = None) -> Ran:
        code = run(arguments, {"FLEET_HOST": engine.url, **(environment or {})})
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
