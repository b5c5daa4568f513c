"""Containers that share namespaces, volumes and limits, as ``docker run`` asks for them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host

from fleet.containers import Container, ContainerConfig, FileMount, NetworkMode
from fleet.errors import ConflictError, NotFoundError, RejectedFault, UnsupportedError, UserError
from fleet.model.service import Mount
from fleet.node_runtime.cgroup_layout import detect_layout

pytestmark = pytest.mark.kernel


async def sleeper(host: RealHost, **fields: object) -> Container:
    made = await host.engine.create(ContainerConfig(image="busybox", command=("sleep", "1000"), **fields))  # type: ignore[arg-type]
    await host.engine.start(made.id)
    return host.engine.get(made.id)


def test_the_network_of_another_container_comes_with_its_names(unique: str) -> None:
    async def story(host: RealHost) -> None:
        donor = await sleeper(host, name="donor", extra_hosts=("db:10.1.2.3",))
        made, status, output = await host.run(
            "sh",
            "-c",
            "readlink /proc/self/ns/net; hostname; cat /etc/hosts",
            network_mode=NetworkMode.CONTAINER,
            network_container="donor",
        )
        assert status.code == 0, output
        lines = output.splitlines()
        assert lines[0] == os.readlink(f"/proc/{donor.state.pid}/ns/net")
        assert lines[1] == donor.hostname
        assert "10.1.2.3\tdb" in lines
        assert made.config.network_container == donor.id
        assert await host.network.sandboxes() == [donor.id]  # the end of the guest takes nothing from the host
        await host.engine.stop(donor.id, grace_s=0)
        with pytest.raises(ConflictError, match="cannot join network of a non running container"):
            await host.engine.start(made.id)

    on_real_host(story, unique=unique)


def test_processes_and_shared_memory_of_another_container(unique: str) -> None:
    async def story(host: RealHost) -> None:
        donor = await sleeper(host, name="donor", ipc_mode="shareable")
        shared = {"pid_mode": "container:donor", "ipc_mode": "container:donor"}
        made, status, output = await host.run(
            "sh", "-c", "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; : > /dev/shm/from-guest", **shared
        )
        assert status.code == 0, output
        pid = donor.state.pid
        assert output.split() == [os.readlink(f"/proc/{pid}/ns/pid"), os.readlink(f"/proc/{pid}/ns/ipc")]
        assert Path(f"/proc/{pid}/root/dev/shm/from-guest").exists()
        assert made.config.pid_mode == f"container:{donor.id}"
        closed = await sleeper(host)
        with pytest.raises(UserError, match="non-shareable IPC"):
            await host.engine.create(
                ContainerConfig(image="busybox", command=("true",), ipc_mode=f"container:{closed.id}")
            )
        with pytest.raises(NotFoundError):
            await host.engine.create(ContainerConfig(image="busybox", command=("true",), pid_mode="container:nobody"))

    on_real_host(story, unique=unique)


def test_the_hosts_namespaces(unique: str) -> None:
    async def story(host: RealHost) -> None:
        read = "for kind in pid ipc uts; do readlink /proc/self/ns/$kind; done"
        _, _, output = await host.run("sh", "-c", read, pid_mode="host", ipc_mode="host", uts_mode="host")
        assert output.split() == [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "ipc", "uts")]

    on_real_host(story, unique=unique)


def test_volumes_from_another_container(unique: str) -> None:
    async def story(host: RealHost) -> None:
        donor = await host.engine.create(
            ContainerConfig(
                image="busybox",
                command=("sh", "-c", "echo a > /named/a; echo b > /anon/b"),
                mounts=(Mount(type="volume", source="data", target="/named"),),
                volume_targets=("/anon",),
            )
        )
        await host.engine.start(donor.id)
        await host.engine.wait(donor.id)
        script = "cat /named/a /anon/b; touch /named/x 2>/dev/null || echo no"  # two streams have no order between them
        made, _, output = await host.run("sh", "-c", script, volumes_from=(f"{donor.id}:ro",))
        assert output.splitlines()[:2] == ["a", "b"] and output.splitlines()[-1] == "no"
        await host.engine.remove(donor.id, volumes=True)
        await host.engine.recover()
        await host.engine.start(made.id)  # what both use stays
        await host.engine.wait(made.id)
        assert (await host.output(made.id)).splitlines().count("b") == 2
        for point in made.mounts:
            assert not point.anonymous
        await host.engine.remove(made.id)
        for point in made.mounts:
            await host.engine.volumes.remove(point.name)

    on_real_host(story, unique=unique)


def test_a_cgroup_parent_is_below_fleets_own_and_goes_with_its_last_container(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await sleeper(host, cgroup_parent="/group/inner")
        layout = detect_layout()
        root = layout.unified if layout.is_v2 else layout.v1["memory"]
        group = Path(f"{root}{host.cgroup_parent}/group/inner/{made.id}")
        assert str(made.state.pid) in group.joinpath("cgroup.procs").read_text().split()
        await host.engine.remove(made.id, force=True)
        assert not group.parent.parent.exists()

    on_real_host(story, unique=unique)


def test_a_container_with_ids_of_its_own(unique: str) -> None:
    async def story(host: RealHost) -> None:
        mounts = (Mount(type="volume", source="data", target="/data"),)
        secret = FileMount(target="/run/secrets/key", data=b"s3cret", mode=0o400)
        script = """
            id -u; head -c 6 /run/secrets/key; echo; hostname; grep -c nameserver /etc/resolv.conf; touch /data/made /own
            stat -c %u /data/made /own; (nc -l -p 80 </dev/null >/dev/null & sleep 0.2; kill $! && echo low-port)
            cat /proc/self/uid_map
        """
        made, status, output = await host.run("sh", "-c", script, userns_mode="remap", mounts=mounts, files=(secret,))
        assert status.code == 0, output
        assert made.ids is not None
        first = str(made.ids.first_id)
        assert output.split() == ["0", "s3cret", made.hostname, "1", "0", "0", "low-port", "0", first, "65536"]
        assert Path(made.mounts[0].source, "made").stat().st_uid == 0
        own = (host.engine.directory(made.id) / "upper/own").stat().st_uid
        assert own == made.ids.first_id and made.ids.container_id(own) == 0
        _, _, output = await host.run("stat", "-c", "%u", "/data/made", mounts=mounts)
        assert output == "0\n"  # a container without them sees the same owner
        await host.engine.start(made.id)
        assert (await host.engine.wait(made.id)).code == 0

    on_real_host(story, unique=unique)


def test_a_device_by_its_cdi_name(unique: str) -> None:
    async def story(host: RealHost) -> None:
        directory = host.root / "cdi"
        directory.mkdir()
        (host.root / "driver").write_text("library\n")
        edits = {
            "env": ["DEVICE=tunnel"],
            "deviceNodes": [{"path": "/dev/widget0", "hostPath": "/dev/zero", "permissions": "rw"}],
            "mounts": [
                {"hostPath": str(host.root / "driver"), "containerPath": "/opt/driver", "options": ["ro", "bind"]}
            ],
        }
        spec = {"cdiVersion": "0.6.0", "kind": "acme.org/widget", "devices": [{"name": "0", "containerEdits": edits}]}
        spec["devices"].append({"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer"}]}})  # type: ignore[attr-defined]
        (directory / "acme.json").write_text(json.dumps(spec))
        host.engine._core.cdi_directories = (directory,)
        script = (
            "echo $DEVICE; cat /opt/driver; head -c 3 /dev/widget0 | wc -c; touch /opt/driver 2>/dev/null || echo ro"
        )
        _, status, output = await host.run("sh", "-c", script, cdi_devices=("acme.org/widget=0",))
        assert status.code == 0
        assert [line for line in output.splitlines() if "touch" not in line] == ["tunnel", "library", "3", "ro"]
        with pytest.raises(RejectedFault, match=r"unresolvable CDI devices acme\.org/widget=7"):
            await host.run("true", cdi_devices=("acme.org/widget=7",))
        with pytest.raises(UnsupportedError, match="needs hooks"):
            await host.run("true", cdi_devices=("acme.org/widget=hooked",))

    on_real_host(story, unique=unique)
