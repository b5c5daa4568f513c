"""What a host answers against the facts of the Docker Engine API, for its newest version and for the oldest."""

from __future__ import annotations

from typing import Any

import pytest
from support.engine_api import VERSIONS, faults

from fleet.containers.networks import NetworkWish

_EVERYTHING = {
    "Image": "busybox",
    "Hostname": "box",
    "Cmd": ["sleep", "1"],
    "Entrypoint": ["/bin/x"],
    "Tty": True,
    "StopTimeout": 3,
    "User": "1:2",
    "Env": ["A=1"],
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000},
    "ExposedPorts": {"81/udp": {}},
    "Volumes": {"/anon": {}},
    "HostConfig": {
        "NetworkMode": "lan",
        "Binds": ["/etc:/host:ro", "vol:/v"],
        "Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096}}],
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
        "Memory": 16 << 20,
        "PidsLimit": 5,
        "MemorySwappiness": 3,
        "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
        "CapAdd": ["NET_ADMIN"],
        "CapDrop": ["ALL"],
        "Init": True,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
        "ExtraHosts": ["a:1.2.3.4"],
        "Sysctls": {"net.core.somaxconn": "1"},
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}],
    },
    "NetworkingConfig": {"EndpointsConfig": {"lan": {"Aliases": ["db"]}}},
}


@pytest.mark.parametrize("version", [None, VERSIONS[0], (1, 41), (1, 43), (1, 44), VERSIONS[-1]])
def test_containers_images_and_volumes_have_dockers_fields_and_types(api: Any, version: tuple[int, int] | None) -> None:
    async def story(host: Any) -> None:
        at = f"/v{version[0]}.{version[1]}" if version else ""
        spoken = version or VERSIONS[-1]
        found: list[str] = []

        async def look(kind: str, path: str, **params: Any) -> Any:
            answer = await host.get(f"{at}{path}", **params)
            found.extend(faults(kind, answer, version=spoken))
            return answer

        await host.engine.networks.create(NetworkWish(name="lan"))
        full = (await host.post("/containers/create", _EVERYTHING, 201, name="full"))["Id"]
        await host.post("/containers/create", {"Image": "busybox"}, 201, name="plain")
        for name in (full, "plain"):
            await look("ContainerInspect", f"/containers/{name}/json", size=1)
        await host.post("/containers/full/start", status=204)
        await host.post("/containers/plain/start", status=204)
        shown = await look("ContainerInspect", "/containers/full/json")
        await look("[ContainerSummary]", "/containers/json", size=1)
        exec_id = (await host.post("/containers/full/exec", {"Cmd": ["true"], "User": "1"}, 201))["Id"]
        await look("ExecInspect", f"/exec/{exec_id}/json")
        await look("ImageInspect", "/images/busybox/json")
        [image] = await look("[ImageSummary]", "/images/json")
        await look("VolumeList", "/volumes")
        await look("Volume", "/volumes/vol")
        assert found == []
        assert ("VirtualSize" in image) is (spoken < (1, 44))
        assert shown["NetworkSettings"]["Networks"]["lan"]["DNSNames"] == ["full", "db", full[:12]]
        aliases = shown["NetworkSettings"]["Networks"]["lan"]["Aliases"]
        assert aliases == (["db", full[:12], "box"] if spoken < (1, 45) else ["db"])

    api(story)


def test_images_without_a_name_are_called_none_for_older_clients(api: Any) -> None:
    async def story(host: Any) -> None:
        key = (await host.get("/images/busybox/json"))["Id"]
        await host.post("/containers/create", {"Image": "busybox"}, 201, name="keeper")
        await host.delete("/images/busybox", 200, force=1)
        [old] = await host.get("/v1.42/images/json")
        assert (old["Id"], old["RepoTags"], old["RepoDigests"]) == (key, ["<none>:<none>"], ["<none>@<none>"])
        [new] = await host.get("/v1.43/images/json")
        assert (new["RepoTags"], new["RepoDigests"]) == ([], [])

    api(story)


def test_refusals_are_dockers_errors(api: Any) -> None:
    async def story(host: Any) -> None:
        for path, status in (("/containers/nope/json", 404), ("/nowhere", 404), ("/v1.99/containers/json", 400)):
            assert faults("ErrorResponse", await host.get(path, status)) == []
        assert faults("ErrorResponse", await host.get("/containers/json", 400, filters="x")) == []
        assert faults("ErrorResponse", await host.post("/containers/create", {"Image": ["x"]}, 400)) == []
        assert faults("ErrorResponse", await host.post("/containers/json", None, 405)) == []

    api(story)
