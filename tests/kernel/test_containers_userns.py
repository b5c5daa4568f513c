"""Containers whose root is nobody on the host, for nobody said otherwise: what they are, and what others see of their files."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host

from fleet.containers.config import ContainerConfig
from fleet.containers.layertar import write_layer
from fleet.model.service import Mount

pytestmark = pytest.mark.kernel


def root_on_host(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("Uid:")).split()[1])


def test_root_is_nobody_on_the_host_unless_the_container_asks_or_needs_to_be(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async def started(**fields: object) -> int:
            made = await host.engine.create(ContainerConfig(image="busybox", command=("sleep", "60"), **fields))
            await host.engine.start(made.id)
            return root_on_host(host.engine.get(made.id).state.pid)

        assert await started() >= 1_000_000
        assert await started(userns_mode="host") == 0
        assert await started(privileged=True) == 0
        assert await started(capabilities_add=("NET_ADMIN",)) == 0

    on_real_host(story, unique=unique)


def test_committed_layers_have_the_owners_the_container_saw(unique: str) -> None:
    async def story(host: RealHost) -> None:
        script = "mkdir /own; touch /own/roots /own/webs; chown 33:34 /own/webs; ln -s roots /own/link"
        made, status, output = await host.run("sh", "-c", script)
        assert status.code == 0, output
        assert made.ids is not None
        upper = host.engine.directory(made.id) / "upper"
        # as setcap(8) does it inside: the kernel notes whose root gave them
        given = struct.pack("<I4II", 0x03000001, 1 << 10, 0, 0, 0, made.ids.first_id)
        os.setxattr(upper / "own/roots", "security.capability", given)
        sink = io.BytesIO()
        write_layer(upper, sink, made.ids)
        with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as tar:
            owners = {member.name: (member.uid, member.gid) for member in tar}
            assert owners["own"] == owners["own/roots"] == owners["own/link"] == (0, 0)
            assert owners["own/webs"] == (33, 34)
            headers = tar.getmember("own/roots").pax_headers
            value = headers["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape")
            assert value == struct.pack("<I4I", 0x02000001, 1 << 10, 0, 0, 0)

    on_real_host(story, unique=unique)


def test_files_of_the_host_have_their_owners_through_binds(unique: str) -> None:
    async def story(host: RealHost) -> None:
        secret = host.root / "secret"
        secret.write_text("for root only\n")
        secret.chmod(0o600)
        bind = Mount(type="bind", source=str(secret), target="/secret")
        made, status, output = await host.run("sh", "-c", "cat /secret; stat -c %u /secret", mounts=(bind,))
        assert made.ids is not None
        assert (status.code, output.split("\n")[:2]) == (0, ["for root only", "0"])
        _, status, output = await host.run("sh", "-c", "cat /secret", mounts=(bind,), user="1000")
        assert status.code != 0 and "denied" in output.lower()

    on_real_host(story, unique=unique)
