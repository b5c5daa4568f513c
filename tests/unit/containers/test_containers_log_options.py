"""Log drivers and their options, for containers and for tasks."""

from __future__ import annotations

import pytest

from fleet.agent.container_task import _log
from fleet.containers import LogConfig
from fleet.containers.logs import log_config
from fleet.errors import RejectedFault, UserError
from fleet.model.common import Driver
from fleet.model.service import ContainerSpec, TaskSpec


def test_drivers_have_dockers_defaults() -> None:
    assert log_config("", {}) == log_config("default", {}) == log_config("json-file", {}) == LogConfig()
    local = log_config("local", {})
    assert (local.driver, local.max_size_bytes, local.max_files) == ("local", 20 << 20, 5)
    assert log_config("none", {}).driver == "none"


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_sizes_and_counts_are_taken(driver: str) -> None:
    made = log_config(driver, {"max-size": "1m", "max-file": "2"})
    assert (made.driver, made.max_size_bytes, made.max_files) == (driver, 1 << 20, 2)


def test_no_bound_is_one_file() -> None:
    made = log_config("json-file", {"max-size": "-1"})
    assert made.max_size_bytes == (1 << 63) - 1
    assert made.max_files == 1
    with pytest.raises(UserError, match="max-file"):
        log_config("json-file", {"max-size": "-1", "max-file": "2"})


def test_labels_and_variables_are_named_once() -> None:
    made = log_config("json-file", {"labels": "a, b,a", "env": "X"})
    assert (made.labels, made.env) == (("a", "b"), ("X",))


@pytest.mark.parametrize(
    ("driver", "options", "text"),
    [
        ("json-file", {"odd": "1"}, "unknown log opt 'odd' for json-file log driver"),
        ("local", {"env": "X"}, "unknown log opt 'env' for local log driver"),
        ("none", {"max-size": "1m"}, "unknown log opt 'max-size' for none log driver"),
        ("gelf", {}, "log driver 'gelf' is not supported"),
        ("json-file", {"max-file": "\u0663"}, "max-file"),
        ("json-file", {"max-file": "1001"}, "max-file"),
        ("json-file", {"max-size": "0"}, "max-size"),
        ("json-file", {"max-size": "much"}, "max-size"),
    ],
)
def test_what_is_not_known_is_refused_by_name(driver: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        log_config(driver, options)
    task = TaskSpec(container_spec=ContainerSpec(image="x"), log_driver=Driver(name=driver, options=options))
    with pytest.raises(RejectedFault, match=text):
        _log(task)


def test_a_task_gets_what_its_service_asked_for() -> None:
    driver = Driver(name="local", options={"max-size": "2m"})
    made = _log(TaskSpec(container_spec=ContainerSpec(image="x"), log_driver=driver))
    assert (made.driver, made.max_size_bytes, made.max_files) == ("local", 2 << 20, 5)
    assert _log(TaskSpec(container_spec=ContainerSpec(image="x"))) == LogConfig()
