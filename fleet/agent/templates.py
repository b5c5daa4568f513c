"""``{{.Task.Slot}}`` and its like in a task's hostname, environment and mounts, as Docker Swarm expands them (TPL-01..03)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from fleet import errors
from fleet.model.node import NodeDescription
from fleet.model.task import Task, task_name

__all__ = ["expand", "placeholders"]

_PLACE: Final = re.compile(r"\{\{-?\s*(?:index\s+)?(\.[A-Za-z.]+)(?:\s+\"([^\"]*)\"|\.([\w.-]+))?\s*-?\}\}")


def placeholders(task: Task, *, hostname: str, description: NodeDescription) -> dict[str, str]:
    """Every name a template may use, and what it stands for in this task. Labels are ``.Service.Labels.KEY``."""
    values = {
        ".Service.ID": task.service_id,
        ".Service.Name": task.service_name,
        ".Node.ID": task.node_id,
        ".Node.Hostname": hostname,
        ".Node.Platform.Architecture": description.platform.architecture,
        ".Node.Platform.OS": description.platform.os,
        ".Task.ID": task.id,
        ".Task.Name": task_name(task),
        ".Task.Slot": str(task.slot) if task.slot else task.node_id,
    }
    values.update({f".Service.Labels.{key}": value for key, value in task.service_labels.items()})
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders replaced. Raises ``RejectedFault`` naming one that means nothing."""
    if "{{" not in text:
        return text

    def replaced(match: re.Match[str]) -> str:
        key = match[2] or match[3]
        name = f"{match[1]}.{key}" if key else match[1]
        if name not in values:
            raise errors.RejectedFault(
                f"template {match[0]}: {name} is not known; known are {', '.join(sorted(values))}"
            )
        return values[name]

    result = _PLACE.sub(replaced, text)
    if "{{" in result:
        raise errors.RejectedFault(
            f"template {text!r}: only plain placeholders such as {{{{.Task.Slot}}}} are understood"
        )
    return result
