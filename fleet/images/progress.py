"""What a fetch tells its caller while it works, and the shape Docker's clients draw bars from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Progress", "ProgressCallback", "Stage", "progress_message"]

Stage = Literal[
    "resolving",
    "waiting",
    "downloading",
    "downloaded",
    "exists",
    "unpacking",
    "unpacked",
    "retrying",
    "pushing",
    "pushed",
    "mounted",
    "done",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a fetch. ``digest`` is the layer's, or the manifest's for stages of the whole image."""

    reference: str
    stage: Stage
    digest: str = ""
    current_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""


ProgressCallback = Callable[[Progress], None]

_STATUS: dict[Stage, str] = {
    "resolving": "Pulling from",
    "waiting": "Waiting",
    "downloading": "Downloading",
    "downloaded": "Download complete",
    "exists": "Already exists",
    "unpacking": "Extracting",
    "pushing": "Pushing",
    "pushed": "Pushed",
    "mounted": "Mounted from",
    "unpacked": "Pull complete",
    "retrying": "Retrying",
    "done": "Status: image is up to date for",
}


def progress_message(progress: Progress) -> dict[str, object]:
    """One line of ``POST /images/create`` (Docker Engine API ``CreateImageInfo``)."""
    status = _STATUS[progress.stage]
    if progress.stage in {"resolving", "done"}:
        return {"status": f"{status} {progress.reference}"}
    message: dict[str, object] = {"id": progress.digest.removeprefix("sha256:")[:12], "status": status}
    if progress.stage == "mounted":
        message["status"] = f"{status} {progress.detail}"
    elif progress.detail:
        message["status"] = f"{status}: {progress.detail}"
    if progress.total_bytes and progress.stage in {"downloading", "pushing"}:
        message["progressDetail"] = {"current": progress.current_bytes, "total": progress.total_bytes}
    else:
        message["progressDetail"] = {}
    return message
