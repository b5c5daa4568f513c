"""Containers whose root is nobody on the host, for nobody said otherwise: what they are, and what others see of their files."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host

from fleet.containers.config import ContainerConfig, NetworkMode
from fleet.containers.layertar import write_layer
from fleet.containers.subids import IdRange
from fleet.model.service import Mount
from fleet.network.topology import AttachmentSpec

pytestmark = pytest.mark.kernel
SYSCTL_OF_THE_HOST = {"net.ipv6.route.gc_thresh": "1025"}


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
        assert await started(capabilities_add=("SYS_ADMIN",)) == 0
        assert await started(capabilities_add=("NET_ADMIN",)) >= 1_000_000

    on_real_host(story, unique=unique)


def test_its_network_is_its_own(unique: str) -> None:
    """Raw sockets, low ports for anybody, sysctls; cards and routes with NET_ADMIN."""

    async def story(host: RealHost) -> None:
        script = """
            ping -c 1 -W 5 127.0.0.1 > /dev/null && echo pinged
            ping -c 1 -W 5 172.29.0.1 > /dev/null && echo pinged-gateway
            cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_unprivileged_port_start
            ip link set lo mtu 1000 2>/dev/null || echo may-not
        """
        _, status, output = await host.run("sh", "-c", script, sysctls={"net.core.somaxconn": "1234"})
        assert output.split() == ["pinged", "pinged-gateway", "1234", "0", "may-not"], status
        script = "httpd -p 80 -h /etc && wget -qO- 127.0.0.1/hostname | wc -l"
        _, status, output = await host.run("sh", "-c", script, user="1000")
        assert output.split() == ["1"], status
        script = """
            ip link set eth0 mtu 1400 && ip addr add 10.9.8.7/24 dev eth0 && ip route | grep -c 10.9.8
            (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo proc-is-read-only
        """
        _, status, output = await host.run("sh", "-c", script, capabilities_add=("NET_ADMIN",))
        assert output.split() == ["1", "proc-is-read-only"], status
        _, status, output = await host.run("ping", "-c", "1", "-W", "5", "127.0.0.1", capabilities_drop=("NET_RAW",))
        assert status.code != 0, output

    on_real_host(story, unique=unique)


def test_capabilities_of_files_in_the_image_count(unique: str) -> None:
    async def story(host: RealHost) -> None:
        await host.add_image("pinger", extra_files={"bin/busybox-pinger": Path("/bin/busybox").read_bytes()})
        net_raw = 1 << 13
        program = host.images.get("pinger").layer_dirs[0] / "bin/busybox-pinger"
        os.setxattr(program, "security.capability", struct.pack("<I4I", 0x02000001, net_raw, 0, 0, 0))
        made = await host.engine.create(
            ContainerConfig(
                image="pinger",
                command=("busybox-pinger", "grep", "CapEff", "/proc/self/status"),
                user="1000",
                no_new_privileges=False,
            )
        )
        await host.engine.start(made.id)
        await host.engine.wait(made.id)
        assert made.ids is not None
        assert int((await host.output(made.id)).split()[1], 16) == net_raw

    on_real_host(story, unique=unique)


def test_sysctls_of_its_namespaces_can_be_set(unique: str) -> None:
    async def story(host: RealHost) -> None:
        values = {
            "net.ipv4.tcp_syncookies": "0",
            "kernel.msgmax": "9000",
            "kernel.sem": "300",
            "fs.mqueue.msg_max": "12",
        }
        names = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in values)
        made, _, output = await host.run("sh", "-c", f"cat {names}", sysctls=values)
        assert made.ids is not None
        lines = output.splitlines()
        assert [lines[0], lines[1], lines[2].split()[0], lines[3]] == list(values.values())
        # which a network of other users does not have
        made, _, output = await host.run(
            "sh", "-c", "cat /proc/sys/net/ipv6/route/gc_thresh", sysctls=SYSCTL_OF_THE_HOST
        )
        assert made.ids is None and output.split() == ["1025"]

    on_real_host(story, unique=unique)


def test_a_firewall_of_its_own_with_net_admin(unique: str) -> None:
    async def story(host: RealHost) -> None:
        made = await host.engine.create(
            ContainerConfig(image="busybox", command=("sleep", "60"), capabilities_add=("NET_ADMIN",))
        )
        await host.engine.start(made.id)
        pid = host.engine.get(made.id).state.pid
        # the host's nft with the container's ids, capabilities and network
        own = ("nsenter", f"--target={pid}", "--user", "--net", "--setuid=0", "--setgid=0")
        script = "nft add table ip own && nft add chain ip own c '{ type filter hook output priority 0; }' && nft list ruleset"
        done = subprocess.run([*own, "sh", "-c", script], capture_output=True, text=True, check=False)
        assert "hook output" in done.stdout, done
        await host.engine.disconnect(made.id, "bridge", network="bridge")
        await host.engine.connect(made.id, AttachmentSpec(network_id="bridge"), network="bridge")
        _, output = await host.inside(made.id, "ping -c 1 -W 5 172.29.0.1 > /dev/null && echo pinged")
        assert output.split() == [b"pinged"]

    on_real_host(story, unique=unique)


def test_containers_that_share_namespaces_share_their_user_namespace(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async def started(**fields: object) -> tuple[str, str]:
            made = await host.engine.create(ContainerConfig(image="busybox", command=("sleep", "60"), **fields))
            await host.engine.start(made.id)
            return made.id, os.readlink(f"/proc/{host.engine.get(made.id).state.pid}/ns/user")

        donor, users = await started(ipc_mode="shareable", userns_mode="remap")
        other, other_users = await started()
        assert users != other_users != os.readlink("/proc/self/ns/user")
        sharing: dict[str, object] = {"network_mode": NetworkMode.CONTAINER, "network_container": donor}
        partner, partners = await started(**sharing)
        assert partners == users
        _, output = await host.inside(partner, "ping -c 1 -W 5 172.29.0.1 > /dev/null && echo pinged")
        assert output.split() == [b"pinged"]
        all_three = {**sharing, "pid_mode": f"container:{donor}", "ipc_mode": f"container:{donor}"}
        partner, partners = await started(**all_three)
        assert partners == users
        await host.inside(donor, "echo told > /dev/shm/word")
        _, output = await host.inside(
            partner, "cat /dev/shm/word; ps | grep -c '[s]leep 60'; kill -0 1 && echo may-signal"
        )
        assert output.split() == [b"told", b"2", b"may-signal"]
        _, hosts = await started(userns_mode="host", **sharing)
        assert hosts == os.readlink("/proc/self/ns/user")
        _, mixed = await started(pid_mode=f"container:{other}", **sharing)
        assert mixed == os.readlink("/proc/self/ns/user")

    on_real_host(story, unique=unique)


def test_what_cannot_be_mapped_is_for_containers_with_the_hosts_ids(unique: str) -> None:
    async def story(host: RealHost) -> None:
        async def ids(*sources: str) -> IdRange | None:
            binds = tuple(Mount(type="bind", source=source, target=f"/b{n}") for n, source in enumerate(sources))
            return (await host.engine.create(ContainerConfig(image="busybox", mounts=binds))).ids

        assert await ids(str(host.root)) is not None
        assert await ids("/dev/shm", "/etc/hostname") is not None
        assert await ids(str(host.root), "/proc") is None
        assert await ids("/") is None
        own = await host.engine.create(ContainerConfig(image="busybox", volume_targets=("/data",)))
        assert own.ids is not None

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
