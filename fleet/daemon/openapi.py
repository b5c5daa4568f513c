"""The OpenAPI document of the routes, with what the routes themselves do not say: an example of each of fleet's own operations.

Routes read their bodies themselves (``api.http.read_struct``), so FastAPI knows neither body nor answer. For ``/fleet/v1`` both
are here, as a request that works and what comes of it; Docker's operations are Docker's to describe, and only carry the shape of
errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import FastAPI

from fleet import __version__
from fleet.store.backup import FORMAT

__all__ = ["EXAMPLES", "Example", "describe"]

_USER_ID: Final = "z3k1mq0v8xw2n5c7r9t4b6y1d"
_TOKEN_ID: Final = "h5j2kq9w1e8r7t6y3u4i0o2pa"  # noqa: S105 - an id
_TOKEN_TEXT: Final = f"FLTK-1-{_TOKEN_ID}-..."
_TASK_ID: Final = "3vb9w1x0c8d7e6f5g4h3j2k1l"
_NODE_ID: Final = "8s7d6f5g4h3j2k1l0q9w8e7r6"
_OTHER_NODE_ID: Final = "1a2s3d4f5g6h7j8k9l0z1x2c3"
_SERVICE_ID: Final = "0mt6zaqagxkpo72kw0h5tkqtw"
_LINES: Final = "application/x-ndjson"
_THEN: Final = "2026-01-02T03:04:05.678901Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A request that works, and its answer. ``query`` maps a parameter to what it may be; ``lines``: the answer is JSON values,
    one a line, of which ``answer`` is one.
    """

    text: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    body_type: str = "application/json"
    status: int = 200
    answer: Any = None
    lines: bool = False


_PRINCIPAL: Final = {
    "User": "anna",
    "Role": "operator",
    "Scope": [{"com.docker.stack.namespace": "shop"}],
    "HostAccess": False,
    "TokenID": _TOKEN_ID,
    "Session": False,
}
_USER_SPEC: Final = {
    "Name": "anna",
    "Role": "operator",
    "Scope": [{"com.docker.stack.namespace": "shop"}],
    "HostAccess": False,
    "Disabled": False,
    "Description": "deploys the shop",
}
_USER: Final = {
    "ID": _USER_ID,
    "Version": {"Index": 42},
    "CreatedAt": _THEN,
    "UpdatedAt": _THEN,
    "Spec": _USER_SPEC,
}
_TOKEN: Final = {
    "ID": _TOKEN_ID,
    "CreatedAt": _THEN,
    "UserID": _USER_ID,
    "User": "anna",
    "Description": "pipeline",
    "ExpiresAt": "2027-01-02T03:04:05.678901Z",
    "LastUsedAt": None,
}
_LOAD: Final = {
    "Time": 1767323045.678,
    "NanoCPUs": 430_000_000,
    "MemoryBytes": 2_147_483_648,
    "Containers": {"NanoCPUs": 120_000_000, "MemoryBytes": 268_435_456},
}
_USAGE: Final = {
    "PeriodSeconds": 10.0,
    "Nodes": [{"NodeID": _NODE_ID, "Now": _LOAD, "History": [_LOAD]}],
    "Tasks": [{"ID": _TASK_ID, "NanoCPUs": 120_000_000, "MemoryBytes": 25_165_824}],
}
_REBALANCE: Final = {
    "Request": {"RequestedAt": _THEN},
    "Moves": [
        {
            "ID": _TASK_ID,
            "Service": "web",
            "Slot": 2,
            "From": _NODE_ID,
            "State": "running",
            "To": _OTHER_NODE_ID,
            "Reason": "2 tasks of web here, none there",
        }
    ],
    "Stays": {"db": "its volumes are on w1"},
    "UnderWay": [],
    "Moved": [],
    "GivenUp": [],
}
_MOVE: Final = {
    "ID": _TASK_ID,
    "Name": f"db.1.{_TASK_ID}",
    "From": _NODE_ID,
    "To": _OTHER_NODE_ID,
    "ToName": "w2",
    "Stage": "copying",
    "Message": "its data is copied while it runs: 12 of about 40 MiB",
    "Successor": {
        "ID": "9l8k7j6h5g4f3d2s1a0p9o8i7",
        "Name": "db.1.9l8k7j6h5g4f3d2s1a0p9o8i7",
        "NodeID": _OTHER_NODE_ID,
    },
}
_BACKUP: Final = {
    "format": FORMAT,
    "version": 1,
    "cluster_id": "kssowqolsfs91s3v62ohvuv34",
    "revision": 948,
    "created_at": _THEN,
    "sealing_key": "c2VhbGluZyBrZXk=",
}
_FILTER: Final = 'JSON, name -> values: {"user": ["anna"]}'

EXAMPLES: Final[Mapping[str, Example]] = {
    "GET /fleet/v1/whoami": Example(text="Whom the daemon takes the caller for.", answer=_PRINCIPAL),
    "POST /fleet/v1/session": Example(
        text="Sign in with a token, for browsers: sets a cookie.",
        body={"Token": _TOKEN_TEXT},
        status=201,
        answer={**_PRINCIPAL, "Session": True, "Key": "1c9e..."},
    ),
    "DELETE /fleet/v1/session": Example(text="Sign out.", status=204),
    "GET /fleet/v1/users": Example(text="All users.", answer=[_USER]),
    "POST /fleet/v1/users/create": Example(
        text="Make a user. Role: admin, operator or viewer; Scope: label selectors, none for everything.",
        body=_USER_SPEC,
        status=201,
        answer={"ID": _USER_ID},
    ),
    "GET /fleet/v1/users/{id_}": Example(text="One user, by id or name.", answer=_USER),
    "POST /fleet/v1/users/{id_}/update": Example(
        text="Change a user as a whole.",
        query={"version": "Version.Index of the user as it was read; a stale one is a conflict (409)"},
        body={**_USER_SPEC, "Disabled": True},
    ),
    "DELETE /fleet/v1/users/{id_}": Example(text="Remove a user with all tokens.", status=204),
    "GET /fleet/v1/tokens": Example(text="Tokens, without their text.", query={"filters": _FILTER}, answer=[_TOKEN]),
    "POST /fleet/v1/tokens/create": Example(
        text="Make a token; its text is in this answer and nowhere else. ExpiresIn is in nanoseconds, 0 for never.",
        body={"User": "anna", "Description": "pipeline", "ExpiresIn": 86_400_000_000_000},
        status=201,
        answer={"ID": _TOKEN_ID, "Token": _TOKEN_TEXT},
    ),
    "DELETE /fleet/v1/tokens/{id_}": Example(text="Revoke a token.", status=204),
    "GET /fleet/v1/swarm/backup": Example(text="The cluster's state; holds its keys.", answer=_BACKUP, lines=True),
    "POST /fleet/v1/swarm/restore": Example(
        text="Found a cluster anew from a backup, which is the body.",
        query={"listenAddr": "address and port for other nodes", "advertiseAddr": "address told to other nodes"},
        body=_BACKUP,
        body_type=_LINES,
        answer={"NodeID": _NODE_ID},
    ),
    "POST /fleet/v1/containers/{name}/move": Example(
        text="Move a container to another node. Start: start it there; Keep: leave the stopped one here.",
        body={"To": "w2", "Source": "w1", "Start": True, "Keep": False, "HostAccess": False},
        answer={"stage": "copying", "bytes": 12_582_912, "total": 41_943_040},
        lines=True,
    ),
    "GET /fleet/v1/networks/doctor": Example(
        text="What is wrong with networks, in sentences.",
        query={"filters": 'JSON: {"network": ["front"], "node": ["w1"]}; none for all'},
        answer={
            "Healthy": True,
            "Hosts": [{"ID": _NODE_ID, "Hostname": "w1", "Address": "10.0.0.2"}],
            "Findings": [
                {
                    "Check": "path",
                    "Level": "right",
                    "Says": "w1 and w2 hear each other",
                    "Remedy": "",
                    "Network": "",
                    "Host": "",
                }
            ],
        },
    ),
    "GET /fleet/v1/services/{id_}/placement": Example(
        text="Where the service's next task would go, and for every other node why not.",
        answer={
            "ServiceID": _SERVICE_ID,
            "Strategy": "spread",
            "Chosen": _NODE_ID,
            "Reason": "fewest tasks of the service",
            "Preempted": [],
            "Preempts": None,
            "Quotas": [],
            "Nodes": [
                {
                    "ID": _NODE_ID,
                    "Hostname": "w1",
                    "Reasons": [],
                    "Notes": [],
                    "Score": 0,
                    "Failures": 0,
                    "ServiceTasks": 0,
                    "Tasks": 3,
                    "ReservedPermille": 120,
                }
            ],
            "Waiting": [],
            "Autoscale": None,
        },
    ),
    "GET /fleet/v1/usage": Example(
        text="What nodes and tasks use.",
        query={"since": "Unix seconds: the history of nodes after it", "tasks": "1: tell of tasks as well"},
        answer=_USAGE,
    ),
    "GET /fleet/v1/watch": Example(
        text="Nodes, services and tasks as they are, and then each change.",
        answer={"Type": "task", "Action": "remove", "ID": _TASK_ID},
        lines=True,
    ),
    "GET /fleet/v1/tasks": Example(
        text="The task with that name, if there is one.",
        query={"named": f"web.2.{_TASK_ID}"},
        answer=[{"ID": _TASK_ID, "Name": f"web.2.{_TASK_ID}"}],
    ),
    "POST /fleet/v1/tasks/{id_}/move": Example(
        text="Move a service's task with its data to another node.", body={"To": "w2"}, status=202, answer=_MOVE
    ),
    "GET /fleet/v1/tasks/{id_}/move": Example(text="How far the move of a task has come.", answer=_MOVE),
    "GET /fleet/v1/rebalance": Example(text="Which tasks would move, and which do.", answer=_REBALANCE),
    "POST /fleet/v1/rebalance": Example(text="Ask for it.", status=202, answer=_REBALANCE),
    "DELETE /fleet/v1/rebalance": Example(text="Take that back.", status=204),
    "GET /fleet/v1/quotas": Example(
        text="Quotas with what is used of them; they are set as labels of the swarm.",
        answer=[
            {
                "Name": "shop",
                "Label": "com.docker.stack.namespace",
                "Value": "shop",
                "Services": 3,
                "Waiting": 0,
                "Used": {"Tasks": 5, "NanoCPUs": 2_000_000_000, "MemoryBytes": 268_435_456},
                "Limits": {"Tasks": 10, "NanoCPUs": None, "MemoryBytes": None},
            }
        ],
    ),
}

_ERROR: Final = {
    "description": "What was wrong, in a sentence.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["message"],
                "properties": {"message": {"type": "string"}},
            },
            "example": {"message": "service web not found"},
        }
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of ``app``, made once."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    document["info"] = {"title": "fleet", "version": __version__}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation["responses"].pop("422", None)  # what does not fit is answered with 400 and a message, as all else
            operation["responses"]["default"] = _ERROR
            example = EXAMPLES.get(f"{method.upper()} {path}")
            if example is not None:
                _add(operation, example)
    document.pop("components", None)
    return document


def _add(operation: dict[str, Any], example: Example) -> None:
    operation["description"] = example.text
    known = operation.setdefault("parameters", [])
    for name, text in example.query.items():
        given = next((each for each in known if each["name"] == name), None)
        if given is None:
            known.append({"name": name, "in": "query", "schema": {"type": "string"}, "description": text})
        else:
            given["example"] = text
    if example.body is not None:
        operation["requestBody"] = {"content": {example.body_type: {"schema": {}, "example": example.body}}}
    answer: dict[str, Any] = {"description": "Done."}
    if example.answer is not None:
        kind = _LINES if example.lines else "application/json"
        answer["content"] = {kind: {"schema": {}, "example": example.answer}}
    operation["responses"] = {str(example.status): answer, "default": operation["responses"]["default"]}
