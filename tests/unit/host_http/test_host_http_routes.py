"""Routes of one host, as clients call them."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest


def test_a_container_from_create_to_removal(api: Any) -> None:
    async def story(host: Any) -> None:
        body = {
            "Image": "busybox",
            "Cmd": ["sleep", "1 0"],
            "Labels": {"a": "b"},
            "HostConfig": {"NetworkMode": "default"},
        }
        made = await host.post("/containers/create", body, 201, name="web")
        key = made["Id"]
        assert await host.get("/containers/json") == []
        [listed] = await host.get("/containers/json", all=1)
        assert (listed["Names"], listed["State"], listed["Status"]) == (["/web"], "created", "Created")
        assert listed["Command"] == 'sleep "1 0"'
        await host.post("/containers/web/start", status=204)
        await host.post("/containers/web/start", status=304)
        [listed] = await host.get("/containers/json")
        assert listed["State"] == "running" and listed["Image"] == "busybox"
        assert listed["Ports"] == [{"PrivatePort": 80, "Type": "tcp"}]
        found = await host.get(f"/containers/{key[:12]}/json")
        assert found["State"]["Running"] and found["Config"]["Cmd"] == ["sleep", "1 0"]
        assert found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].startswith("172.17.")
        assert found["Config"]["Labels"] == {"tier": "base", "a": "b"}
        await host.delete("/containers/web", 409)
        await host.post("/containers/web/stop", status=204, t=5)
        await host.post("/containers/web/stop", status=304)
        assert (await host.post("/containers/web/wait"))["StatusCode"] == 143
        await host.delete("/containers/web")
        assert (await host.get("/containers/web/json", 404)) == {"message": "No such container: web"}

    api(story)


def test_an_unknown_image_is_a_404_that_makes_clients_pull(api: Any) -> None:
    async def story(host: Any) -> None:
        assert await host.post("/containers/create", {"Image": "nope"}, 404) == {"message": "No such image: nope"}
        assert (await host.get("/images/nope/json", 404)) == {"message": "No such image: nope"}

    api(story)


def test_every_setting_docker_run_sends_arrives(api: Any) -> None:
    async def story(host: Any) -> None:
        body = {
            "Image": "busybox",
            "Entrypoint": "/bin/x",
            "Cmd": ["y"],
            "Tty": True,
            "StopTimeout": 3,
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1000000000},
            "ExposedPorts": {"81/udp": {}},
            "Volumes": {"/anon": {}, "/host/": {}, "/v": {}},
            "HostConfig": {
                "Binds": ["/etc:/host:ro", "vol:/v", "/loose"],
                "Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096}}],
                "Tmpfs": {"/t2": "size=1m,mode=700"},
                "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]},
                "Memory": 16 << 20,
                "CpuQuota": 50000,
                "PidsLimit": None,
                "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
                "CapAdd": ["NET_ADMIN"],
                "CapDrop": ["ALL"],
                "ReadonlyRootfs": True,
                "Init": True,
                "SecurityOpt": ["no-new-privileges=false"],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
                "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
                "ExtraHosts": ["a:1.2.3.4"],
            },
        }
        key = (await host.post("/containers/create", body, 201))["Id"]
        await host.post(f"/containers/{key}/start", status=204)
        spec = host.runtime.specs[0]
        assert spec.process.args == ("/bin/x", "y") and spec.process.tty and spec.init and spec.root.read_only
        assert spec.process.capabilities == ("NET_ADMIN",) and not spec.process.no_new_privileges
        assert (spec.resources.memory_bytes, spec.resources.cpu_quota_us) == (16 << 20, 50_000)
        targets = {m.target: m for m in spec.mounts}
        assert targets["/host"].read_only and targets["/host"].source == "/etc"
        assert targets["/t"].size_bytes == 4096 and (targets["/t2"].size_bytes, targets["/t2"].mode) == (1 << 20, 0o700)
        assert {"/v", "/loose", "/anon"} <= targets.keys()
        assert (spec.log.max_size_bytes, spec.log.max_files) == (1 << 20, 2)
        found = await host.get(f"/containers/{key}/json")
        assert found["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
        assert found["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 2}
        assert found["State"]["Health"]["Status"] == "starting"
        [port] = [p for p in (await host.get("/containers/json"))[0]["Ports"] if "PublicPort" in p]
        assert port == {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}

    api(story)


def test_shared_namespaces_and_fine_limits_reach_the_runtime_and_are_shown_again(api: Any) -> None:
    async def story(host: Any) -> None:
        settings = {
            "PidMode": "host",
            "IpcMode": "shareable",
            "UTSMode": "host",
            "CgroupnsMode": "host",
            "CgroupParent": "/shop",
            "CpuPeriod": 50000,
            "CpuQuota": 20000,
            "CpusetMems": "0",
            "MemorySwappiness": 0,
            "OomKillDisable": True,
            "BlkioWeight": 300,
            "DeviceCgroupRules": ["c 10:* rwm"],
            "GroupAdd": ["9"],
            "SecurityOpt": ['seccomp={"defaultAction":"SCMP_ACT_ERRNO"}', "apparmor=unconfined"],
        }
        key = (await host.post("/containers/create", {"Image": "busybox", "Cmd": ["x"], "HostConfig": settings}, 201))[
            "Id"
        ]
        await host.post(f"/containers/{key}/start", status=204)
        spec = host.runtime.specs[0]
        assert (spec.pid, spec.ipc, spec.uts, spec.cgroup_namespace) == ("host", "private", "host", "host")
        assert (spec.hostname, spec.cgroup_path) == ("", f"shop/{key}")
        assert spec.device_cgroup_rules == ("c 10:* rwm",) and spec.process.additional_groups == ("9",)
        limits = spec.resources
        assert (limits.cpu_period_us, limits.cpu_quota_us, limits.cpuset_mems) == (50_000, 20_000, "0")
        assert (limits.memory_swappiness, limits.oom_kill_disable, limits.blkio_weight) == (0, True, 300)
        assert spec.seccomp == '{"defaultAction":"SCMP_ACT_ERRNO"}'
        found = (await host.get(f"/containers/{key}/json"))["HostConfig"]
        assert {name: found[name] for name in settings} == settings
        guest = {"Image": "busybox", "Cmd": ["x"], "HostConfig": {"NetworkMode": f"container:{key[:12]}"}}
        other = (await host.post("/containers/create", guest, 201))["Id"]
        found = await host.get(f"/containers/{other}/json")
        assert found["HostConfig"]["NetworkMode"] == f"container:{key}"
        assert found["NetworkSettings"]["Networks"] == {}

    api(story)


@pytest.mark.parametrize(
    ("settings", "status", "text"),
    [
        ({"PidMode": "odd"}, 400, "invalid PID mode: odd"),
        ({"IpcMode": "container:nobody"}, 404, "No such container: nobody"),
        ({"UTSMode": "guest"}, 400, "invalid UTS mode: guest"),
        ({"CgroupnsMode": "odd"}, 400, "invalid cgroup namespace mode: odd"),
        ({"UsernsMode": "private"}, 400, "invalid USER mode: private"),
        ({"UsernsMode": "remap", "Privileged": True}, 400, "privileged mode is incompatible with user namespaces"),
        ({"UsernsMode": "remap", "PidMode": "host"}, 400, "cannot share the host's PID namespace"),
        ({"VolumesFrom": ["nobody"]}, 404, "No such container: nobody"),
        ({"CgroupParent": "/a/../../b"}, 400, "invalid cgroup parent"),
        ({"NanoCpus": 10**9, "CpuQuota": 5000}, 400, "Nano CPUs and CPU Quota cannot both be set"),
        ({"MemorySwappiness": 200}, 400, "valid memory swappiness range is 0-100"),
        ({"BlkioWeight": 5}, 400, "range of blkio weight is from 10 to 1000"),
        ({"SecurityOpt": ["seccomp=/a/path"]}, 400, "Decoding seccomp profile failed"),
        ({"SecurityOpt": ["apparmor=docker-default"]}, 501, "AppArmor profile 'docker-default'"),
        ({"SecurityOpt": ["apparmor="]}, 400, "expected the name of an AppArmor profile"),
        ({"SecurityOpt": ["apparmor:a\nb"]}, 400, "expected the name of an AppArmor profile"),
        ({"NetworkMode": "container:x", "Dns": ["1.1.1.1"]}, 400, "conflicting options: dns and the network mode"),
        (
            {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]},
            400,
            "unresolvable CDI devices nvidia.com/gpu=all",
        ),
        ({"DeviceRequests": [{"Driver": "x", "Capabilities": [["tpu"]]}]}, 400, 'could not select device driver "x"'),
        ({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["odd"]}]}, 400, "invalid CDI device name 'odd'"),
        ({"Links": ["a:b"]}, 501, "--link is not supported"),
        ({"NetworkMode": "container:x"}, 404, "No such container: x"),
        ({"NetworkMode": "other"}, 400, "network other"),
        ({"Memory": 1024}, 400, "Minimum memory limit allowed is 6MB"),
        ({"Binds": ["a:b:c:d"]}, 400, "invalid volume specification"),
        ({"Binds": ["/a:/b:odd"]}, 400, "invalid mode: odd"),
        ({"Binds": ["/etc:/b", "/tmp:/b/"]}, 400, "duplicate mount point: /b"),
        ({"RestartPolicy": {"Name": "sometimes"}}, 400, "unknown policy"),
        ({"PortBindings": {"http": []}}, 400, "invalid port specification"),
        ({"LogConfig": {"Type": "splunk"}}, 400, "log driver 'splunk'"),
        ({"LogConfig": {"Type": "json-file", "Config": {"odd": "1"}}}, 400, "unknown log opt 'odd' for json-file"),
        ({"LogConfig": {"Type": "local", "Config": {"labels": "a"}}}, 400, "unknown log opt 'labels' for local"),
        ({"LogConfig": {"Type": "none", "Config": {"max-size": "1m"}}}, 400, "unknown log opt 'max-size' for none"),
        ({"LogConfig": {"Type": "local", "Config": {"max-file": "0"}}}, 400, "log option max-file: '0'"),
        ({"LogConfig": {"Type": "local", "Config": {"max-size": "0"}}}, 400, "log option max-size: '0'"),
        ({"CapAdd": ["NOPE"]}, 400, "unknown capability"),
        (
            {"Mounts": [{"Type": "bind", "Source": "/nowhere/x", "Target": "/x"}]},
            400,
            "bind source path does not exist",
        ),
        ({"AutoRemove": True, "RestartPolicy": {"Name": "always"}}, 400, "AutoRemove"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_sentence(
    api: Any, settings: dict[str, Any], status: int, text: str
) -> None:
    async def story(host: Any) -> None:
        answer = await host.post("/containers/create", {"Image": "busybox", "HostConfig": settings}, status)
        assert text in answer["message"]
        assert await host.get("/containers/json", all=1) == []
        assert (await host.get("/volumes"))["Volumes"] == []

    api(story)


def test_ps_filters(api: Any) -> None:
    async def story(host: Any) -> None:
        for name, label in (("web-1", "x"), ("web-2", "y"), ("db", "x")):
            await host.post("/containers/create", {"Image": "busybox", "Labels": {"k": label}}, 201, name=name)
        await host.post("/containers/db/start", status=204)

        async def names(**filters: list[str]) -> set[str]:
            found = await host.get("/containers/json", all="true", filters=json.dumps(filters))
            return {item["Names"][0][1:] for item in found}

        assert await names(name=["web"]) == {"web-1", "web-2"}
        assert await names(name=["^/db$"]) == {"db"}
        assert await names(label=["k=x"]) == {"web-1", "db"}
        assert await names(label=["k=x", "tier"], status=["running"]) == {"db"}
        assert await names(ancestor=["busybox"]) == {"web-1", "web-2", "db"}
        assert await names(ancestor=["other"]) == set()
        assert await names(since=["web-1"]) == {"web-2", "db"}
        assert await names(before=["web-2"]) == {"web-1"}
        answer = await host.get("/containers/json", 400, filters='{"odd": ["x"]}')
        assert "invalid filter 'odd'" in answer["message"]
        docker_shape = json.dumps({"name": {"db": True}})
        assert len(await host.get("/containers/json", all=1, filters=docker_shape)) == 1

    api(story)


def test_logs_are_framed_and_filtered(api: Any) -> None:
    async def story(host: Any) -> None:
        key = (await host.post("/containers/create", {"Image": "busybox"}, 201))["Id"]
        lines = [
            {"log": f"line {n}\n", "stream": "stderr" if n == 1 else "stdout", "time": f"2026-01-01T00:00:0{n}.5Z"}
            for n in range(3)
        ]
        host.engine.log_path(key).write_text("".join(json.dumps(line) + "\n" for line in lines))

        async def read(**params: Any) -> list[tuple[int, bytes]]:
            body = (await host.client.get(f"/containers/{key}/logs", params=params)).content
            result = []
            while body:
                kind, size = struct.unpack(">BxxxI", body[:8])
                result.append((kind, body[8 : 8 + size]))
                body = body[8 + size :]
            return result

        assert await read(stdout=1, stderr=1) == [(1, b"line 0\n"), (2, b"line 1\n"), (1, b"line 2\n")]
        assert await read(stderr=1) == [(2, b"line 1\n")]
        assert await read(stdout=1, stderr=1, tail=1, timestamps=1) == [(1, b"2026-01-01T00:00:02.500000000Z line 2\n")]
        assert await read(stdout=1, since="2026-01-01T00:00:02Z") == [(1, b"line 2\n")]
        assert await read(stdout=1, since="1767225602.4", until="1767225603") == [(1, b"line 2\n")]
        assert await read(stdout=1, since="1767225602.500000000") == [(1, b"line 2\n")]
        assert await read(stdout=1, since="1767225602.500001") == []
        assert await read(stdout=1, tail=1, details=1) == [(1, b" line 2\n")]
        assert len(await read(stdout=1, stderr=1, tail="-1")) == 3
        answer = await host.get(f"/containers/{key}/logs", 400)
        assert "at least one stream" in answer["message"]
        for odd in ("some", "1.5", "\u0663"):
            assert (
                "invalid value for tail"
                in (await host.get(f"/containers/{key}/logs", 400, stdout=1, tail=odd))["message"]
            )
        assert (
            "invalid time" in (await host.get(f"/containers/{key}/logs", 400, stdout=1, since="yesterday"))["message"]
        )

    api(story)


def test_volumes(api: Any) -> None:
    async def story(host: Any) -> None:
        made = await host.post("/volumes/create", {"Name": "data", "Labels": {"a": "b"}}, 201)
        assert made["Mountpoint"].endswith("/data/_data") and made["Scope"] == "local"
        assert len((await host.post("/volumes/create", {}, 201))["Name"]) == 64
        assert {v["Name"] for v in (await host.get("/volumes", filters='{"label":["a"]}'))["Volumes"]} == {"data"}
        await host.post("/containers/create", {"Image": "busybox", "HostConfig": {"Binds": ["data:/d"]}}, 201)
        assert len((await host.get("/volumes", filters='{"dangling":["true"]}'))["Volumes"]) == 1
        assert "volume is in use" in (await host.delete("/volumes/data", 409))["message"]
        assert (await host.get("/volumes/none", 404)) == {"message": "get none: no such volume"}
        assert len((await host.post("/volumes/prune"))["VolumesDeleted"]) == 1

    api(story)


def test_images_are_listed_tagged_saved_loaded_and_removed(api: Any) -> None:
    async def story(host: Any) -> None:
        [image] = await host.get("/images/json")
        assert image["RepoTags"] == ["busybox:latest"]
        await host.post("/images/busybox/tag", status=201, repo="team/app", tag="v1")
        assert (await host.get("/images/team/app:v1/json"))["Id"] == image["Id"]
        assert (await host.get("/images/team/app:v1/history"))[0]["Id"] == image["Id"]
        archive = (await host.client.get("/images/get", params={"names": "team/app:v1"})).content
        await host.post("/containers/create", {"Image": "busybox"}, 201, name="user")
        assert (await host.client.delete("/images/busybox")).json() == [{"Untagged": "busybox:latest"}]
        assert "used by a container" in (await host.delete("/images/team/app:v1", 409))["message"]
        await host.delete("/containers/user")
        gone = await host.delete("/images/team/app:v1", 200)
        assert {"Deleted": image["Id"]} in gone
        loaded = await host.client.post("/images/load", content=archive)
        assert json.loads(loaded.text) == {"stream": "Loaded image: team/app:v1\n"}
        assert [i["Id"] for i in await host.get("/images/json", filters='{"reference":["team/*"]}')] == [image["Id"]]
        assert await host.get("/images/json", filters='{"reference":["other*"]}') == []

    api(story)


def test_import_and_bad_uploads(api: Any) -> None:
    async def story(host: Any) -> None:
        bad = await host.client.post("/images/load", content=b"this is no archive at all")
        assert "error" in json.loads(bad.text)
        tar = (await host.client.get("/images/get", params={"names": "busybox"})).content
        made = await host.client.post(
            "/images/create", params={"fromSrc": "-", "repo": "mine", "tag": "2", "changes": "CMD x"}, content=tar
        )
        assert json.loads(made.text)["status"].startswith("sha256:")
        assert (await host.get("/images/mine:2/json"))["Config"]["Cmd"] == ["/bin/sh", "-c", "x"]
        pulled = await host.client.post("/images/create", params={"fromImage": "far/away", "tag": "1"})
        assert "error" in json.loads(pulled.text.strip().splitlines()[-1])

    api(story)


def test_update_rename_kill_pause_and_prune(api: Any) -> None:
    async def story(host: Any) -> None:
        await host.post("/containers/create", {"Image": "busybox"}, 201, name="one")
        await host.post("/containers/one/rename", status=204, name="two")
        await host.post("/containers/two/update", {"Memory": 64 << 20, "RestartPolicy": {"Name": "always"}})
        assert (await host.get("/containers/two/json"))["HostConfig"]["Memory"] == 64 << 20
        await host.post("/containers/two/update", {"RestartPolicy": {"Name": "no"}})
        assert "not running" in (await host.post("/containers/two/kill", status=409))["message"]
        await host.post("/containers/two/start", status=204)
        await host.post("/containers/two/pause", status=204)
        assert (await host.get("/containers/json"))[0]["Status"].endswith("(Paused)")
        await host.post("/containers/two/unpause", status=204)
        assert "invalid signal" in (await host.post("/containers/two/kill", status=400, signal="NOPE"))["message"]
        await host.post("/containers/two/kill", status=204, signal="HUP")
        await host.engine.wait("two")
        assert len((await host.post("/containers/prune"))["ContainersDeleted"]) == 1

    api(story)


def test_stats_of_a_stopped_container_are_empty_but_well_formed(api: Any) -> None:
    async def story(host: Any) -> None:
        await host.post("/containers/create", {"Image": "busybox"}, 201, name="one")
        figures = await host.get("/containers/one/stats", stream="false")
        assert figures["read"] == "0001-01-01T00:00:00Z" and figures["name"] == "/one"

    api(story)


def test_logs_of_driver_none_answer_as_docker(api: Any) -> None:
    async def story(host: Any) -> None:
        body = {"Image": "busybox", "HostConfig": {"LogConfig": {"Type": "none"}}}
        key = (await host.post("/containers/create", body, 201))["Id"]
        answer = await host.get(f"/containers/{key}/logs", 501, stdout=1)
        assert answer["message"] == "configured logging driver does not support reading"

    api(story)
