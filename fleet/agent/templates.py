"""``{{.Task.Slot}}`` and its like in a task's hostname, environment, mounts and templated files, as Docker Swarm expands them
(TPL-01..04).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from fleet import errors
from fleet.model.node import NodeDescription
from fleet.model.task import Task, task_name

__all__ = ["expand", "placeholders"]

_PLACE: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_FIELD: Final = re.compile(r"(?:index\s+)?(\.[A-Za-z.]+)(?:\s+\"([^\"]*)\"|\.([\w.-]+))?")
_CALL: Final = re.compile(r"([a-z]+)\s+(?:\"([^\"]*)\"|`([^`]*)`)")
_SHOWN: Final = 60
"""Characters of a placeholder that an error may show: never the text around it, which may be secret."""


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


def expand(
    text: str,
    values: Mapping[str, str],
    *,
    functions: Mapping[str, Callable[[str], str | None]] | None = None,
) -> str:
    """``text`` with its placeholders replaced, in one pass: what they bring in is not looked through again.

    ``functions`` are those of one quoted argument; None from one means that there is no such thing. Raises ``RejectedFault``
    naming a placeholder that means nothing.
    """
    if "{{" not in text:
        return text
    calls = functions or {}

    def replaced(match: re.Match[str]) -> str:
        inner = match[1].strip("-").strip()
        shown = f"{{{{{match[1][:_SHOWN]}}}}}"
        if call := _CALL.fullmatch(inner):
            name, argument = call[1], call[2] if call[2] is not None else call[3]
            if name in calls:
                found = calls[name](argument)
                if found is None:
                    raise errors.RejectedFault(f"template {shown}: this task has no {name} {argument!r}")
                return found
        elif field := _FIELD.fullmatch(inner):
            key = field[2] or field[3]
            name = f"{field[1]}.{key}" if key else field[1]
            if name in values:
                return values[name]
            raise errors.RejectedFault(f"template {shown}: {name} is not known; known are {', '.join(sorted(values))}")
        also = "".join(f', {{{{ {name} "NAME" }}}}' for name in calls)
        raise errors.RejectedFault(
            f"template {shown}: only plain placeholders are understood, such as {{{{.Task.Slot}}}}{also}"
        )

    if "{{" in _PLACE.sub("", text):
        raise errors.RejectedFault("template: a placeholder begins with {{ and has no }}")
    return _PLACE.sub(replaced, text)
