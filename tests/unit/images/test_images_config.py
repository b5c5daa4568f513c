"""Configuration documents, and images in the Engine API's shapes."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import RejectedFault
from fleet.images.config import parse_config, parse_time
from fleet.images.image import Image
from fleet.images.inspect import image_history, image_inspect, image_summary
from fleet.images.layers import chain_ids
from fleet.images.progress import Progress, progress_message

LOW, HIGH = "sha256:" + "1" * 64, "sha256:" + "2" * 64
DOCUMENT: dict[str, Any] = {
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "author": "someone",
    "created": "2024-05-06T07:08:09.123456789Z",
    "config": {
        "Env": ["A=1"],
        "Cmd": ["sh"],
        "Entrypoint": None,
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}},
        "Labels": {"a": "b"},
        "User": "33",
        "WorkingDir": "/w",
        "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5, "Unknown": 1},
    },
    "rootfs": {"type": "layers", "diff_ids": [LOW, HIGH]},
    "history": [{"created_by": "one"}, {"created_by": "two", "empty_layer": True}, {"created_by": "three"}],
}


def read(**changes: Any) -> Any:
    return parse_config(json.dumps(DOCUMENT | changes).encode(), what="configuration")


def test_everything_a_container_takes_from_its_image_is_read() -> None:
    config = read().config
    assert (config.env, config.cmd, config.entrypoint) == (("A=1",), ("sh",), ())
    assert (config.exposed_ports, config.volumes) == (("53/udp", "80/tcp"), ("/data",))
    assert (config.labels, config.user, config.working_dir, config.stop_signal) == ({"a": "b"}, "33", "/w", "SIGINT")
    assert config.healthcheck == {"Test": ["CMD", "true"], "Interval": 5}
    assert str(config.platform) == "linux/arm64/v8"
    assert read().created == datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rootfs": None}, "rootfs must be an object"),
        ({"rootfs": {"type": "tar"}}, "must be 'layers'"),
        ({"rootfs": {"diff_ids": ["x"]}}, "not a sha256 digest"),
        ({"config": []}, "config must be an object"),
        ({"config": {"Env": [1]}}, "Env must be text"),
        ({"config": {"Cmd": {"a": 1}}}, "Cmd must be a list"),
        ({"config": {"User": "a\0b"}}, "NUL"),
        ({"config": {"Labels": {"a": 1}}}, "a must be text"),
        ({"config": {"Healthcheck": {"Interval": "5s"}}}, "Interval must be a whole number"),
        ({"created": "yesterday"}, "not a time"),
        ({"history": [{"empty_layer": "yes"}]}, "true or false"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RejectedFault, match=why):
        read(**changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("2024-01-01T00:00:00Z", datetime(2024, 1, 1, tzinfo=UTC)),
        ("2024-01-01T02:00:00.5+02:00", datetime(2024, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_times(text: str, expected: datetime | None) -> None:
    assert parse_time(text, what="x") == expected


def image(**changes: Any) -> Image:
    document = read()
    values = {
        "id": LOW,
        "manifest_digest": HIGH,
        "references": ("app:1",),
        "repo_digests": (f"app@{HIGH}",),
        "config": document.config,
        "created": document.created,
        "author": document.author,
        "comment": "",
        "history": document.history,
        "diff_ids": document.diff_ids,
        "layer_digests": (LOW, HIGH),
        "layer_sizes": (100, 23),
        "layer_dirs": (Path("/s/2/fs"), Path("/s/1/fs")),
        "size_bytes": 123,
    }
    return Image(**(values | changes))


def test_summary_has_the_fields_of_image_ls() -> None:
    summary = image_summary(image(), containers=2)
    assert (summary["Id"], summary["RepoTags"], summary["Size"], summary["Containers"]) == (LOW, ["app:1"], 123, 2)
    assert summary["Created"] == 1714979289
    assert image_summary(image(references=(), created=None))["RepoTags"] == []


def test_inspect_has_the_configuration_under_dockers_names() -> None:
    shown = image_inspect(image())
    assert shown["Created"] == "2024-05-06T07:08:09.123456Z"
    assert shown["Config"]["Env"] == ["A=1"]
    assert shown["Config"]["Entrypoint"] is None
    assert shown["Config"]["ExposedPorts"] == {"53/udp": {}, "80/tcp": {}}
    assert shown["RootFS"] == {"Type": "layers", "Layers": [LOW, HIGH]}
    assert shown["GraphDriver"]["Data"] == {"UpperDir": "/s/2/fs", "LowerDir": "/s/1/fs"}
    assert (shown["Architecture"], shown["Variant"], shown["Os"]) == ("arm64", "v8", "linux")
    json.dumps(shown)


def test_history_is_newest_first_and_gives_sizes_to_steps_that_made_layers() -> None:
    steps = image_history(image())
    assert [(step["CreatedBy"], step["Size"]) for step in steps] == [("three", 23), ("two", 0), ("one", 100)]
    assert (steps[0]["Id"], steps[0]["Tags"]) == (LOW, ["app:1"])
    assert steps[1]["Id"] == "<missing>"
    assert [step["Size"] for step in image_history(image(history=()))] == [23, 100]


def test_chain_ids_are_those_of_the_specification() -> None:
    # OCI image spec, config.md, "Layer ChainID": ChainID(L0|L1) = Digest(ChainID(L0) + " " + DiffID(L1))
    import hashlib

    expected = "sha256:" + hashlib.sha256(f"{LOW} {HIGH}".encode()).hexdigest()
    assert chain_ids([LOW, HIGH]) == (LOW, expected)
    assert chain_ids([HIGH, LOW])[1] != expected
    assert chain_ids([]) == ()


def test_progress_lines_are_what_docker_clients_draw() -> None:
    step = Progress(reference="app:1", stage="downloading", digest=LOW, current_bytes=5, total_bytes=10)
    assert progress_message(step) == {
        "id": "1" * 12,
        "status": "Downloading",
        "progressDetail": {"current": 5, "total": 10},
    }
    assert progress_message(Progress(reference="app:1", stage="resolving")) == {"status": "Pulling from app:1"}
