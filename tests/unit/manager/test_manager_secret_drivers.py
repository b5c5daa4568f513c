"""Whom a secret driver's values are given to, and what of its answers is taken."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import NOW, make_task

from fleet import errors
from fleet.manager.secret_drivers import SecretDrivers
from fleet.model.common import Driver
from fleet.model.ids import NodeId, SecretId
from fleet.model.secret import Secret, SecretSpec
from fleet.model.service import SecretReference
from fleet.model.task import TaskState
from fleet.store import Store, Transaction

HERE = NodeId("node-n1")


def secret(name: str, driver: Driver | None) -> Secret:
    spec = SecretSpec(name=name, driver=driver, data=b"" if driver else b"kept", labels={"path": "db"})
    return Secret(id=SecretId(f"id-{name}"), created_at=NOW, updated_at=NOW, spec=spec)


def ask(
    tmp_path: Path, answer: bytes, *, name: str = "driven", task: str = "t", node: NodeId = HERE
) -> tuple[Any, list[Any]]:
    """The value, or the error; and what the driver was asked."""
    asked: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        asked.append((head.split()[1].decode(), json.loads(await reader.readexactly(length))))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    async def main() -> Any:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        driver = Driver(name="vault:latest")
        used = make_task("t")
        references = tuple(
            SecretReference(secret_id=SecretId(f"id-{n}"), secret_name=n) for n in ("driven", "plain", "away")
        )
        container = msgspec.structs.replace(used.spec.container_spec, secrets=references)
        used = msgspec.structs.replace(
            used, node_id=HERE, spec=msgspec.structs.replace(used.spec, container_spec=container)
        )
        stopped = msgspec.structs.replace(used, id=f"{used.id}-stopped", desired_state=TaskState.SHUTDOWN)
        tx = Transaction().create(used).create(stopped).create(secret("driven", driver)).create(secret("plain", None))
        await store.commit(tx.create(secret("other", driver)).create(secret("away", Driver(name="away"))))
        server = await asyncio.start_unix_server(serve, tmp_path / "vault.sock")
        try:
            task_id = {"t": used.id, "stopped": stopped.id}.get(task, task)
            return await SecretDrivers(store, plugins=tmp_path).value(f"id-{name}", task_id=task_id, node_id=node)
        except errors.FleetError as cause:
            return cause
        finally:
            server.close()
            await store.close()
            await engine.close()

    return asyncio.run(asyncio.wait_for(main(), 20)), asked


def said(value: bytes) -> bytes:
    return json.dumps({"Value": base64.b64encode(value).decode(), "DoNotReuse": True}).encode()


def test_the_tasks_node_gets_the_value_and_the_driver_knows_for_whom(tmp_path: Path) -> None:
    value, asked = ask(tmp_path, said(b"hunter2"))
    assert value == b"hunter2"
    ((path, question),) = asked
    assert path.endswith("/SecretProvider.GetSecret")
    assert question["SecretName"] == "driven" and question["SecretLabels"] == {"path": "db"}
    assert question["TaskID"] and question["TaskImage"]


@pytest.mark.parametrize(
    "whom",
    [
        {"node": NodeId("node-n2")},
        {"task": "nobody"},
        {"task": "stopped"},
        {"name": "other"},
        {"name": "plain"},
        {"name": "nothing"},
    ],
)
def test_nobody_else_gets_it(tmp_path: Path, whom: dict[str, Any]) -> None:
    value, asked = ask(tmp_path, said(b"hunter2"), **whom)
    assert isinstance(value, errors.ForbiddenError)
    assert not asked


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>", "JSON object"),
        (b"[" * 100_000, "JSON object"),
        (b"[]", "JSON object"),
        (b'{"Err": "sealed"}', "sealed"),
        (b'{"Value": "???"}', "base64"),
        (b'{"Value": 7}', "base64"),
        (b'{"Value": ""}', "0 bytes"),
        (said(b"x" * 600_000), "600000 bytes"),
        (b" " * 2_000_000, "more than"),
    ],
)
def test_a_bad_answer_is_named_and_waited_over(tmp_path: Path, answer: bytes, words: str) -> None:
    value, _ = ask(tmp_path, answer)
    assert isinstance(value, errors.UnavailableError) and words in str(value) and "vault" in str(value)


def test_a_driver_that_is_not_there_is_named(tmp_path: Path) -> None:
    value, _ = ask(tmp_path, b"", name="away")
    assert isinstance(value, errors.UnavailableError) and "away.sock on this manager" in str(value)
