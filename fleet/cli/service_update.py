"""Reading a service, changing its spec and writing it, as every command does that changes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fleet.cli.app import App, part, retry_conflicts
from fleet.cli.render import print_warnings

__all__ = ["inherited", "post_update"]

Json = dict[str, Any]


def post_update(
    app: App,
    name: str,
    change: Callable[[Json], Json],
    *,
    headers: Callable[[Json], dict[str, str]] = lambda _spec: {},
    **query: str,
) -> Json:
    """Read the service, change its spec, write it; returns the service as it was read."""

    def attempt() -> Json:
        current: Json = app.client.get(f"/services/{part(name)}", insertDefaults=False)
        spec = change(current["Spec"])
        answer = app.client.request(
            "POST",
            f"/services/{current['ID']}/update",
            query={"version": current["Version"]["Index"], **query},
            json_body=spec,
            headers=headers(spec),
        )
        print_warnings(answer)
        return current

    return retry_conflicts(attempt)


def inherited(given: Iterable[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """``--env NAME`` takes the value from here, as docker does; a name that is not set is left out."""
    return tuple(
        text if "=" in text else f"{text}={environment[text]}" for text in given if "=" in text or text in environment
    )
