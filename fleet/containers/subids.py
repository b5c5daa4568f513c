"""The host's ids that stand for the ids of containers with a user namespace of their own.

One range for all containers of the host, as Docker's userns-remap has it: the first entry of /etc/subuid for the user
``fleet``, else 1000000 to 1065535. The same range serves groups. On disk a container's writable layer holds these ids;
volumes and binds hold the container's own, for they are mounted with mapped owners.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fleet.errors import RejectedFault
from fleet.model.wire import Value

__all__ = ["DEFAULT_RANGE", "IDS_MIN", "IdRange", "parse_subids", "read_range"]

_USER: Final = "fleet"
_FILE_BYTES_MAX: Final = 1 << 20
IDS_MIN: Final = 65536
"""How many a container has. Images have files of nobody (65534); with fewer ids these could not be read."""


class IdRange(Value, frozen=True, kw_only=True):
    """Container ids 0..count-1 are host ids first_id..first_id+count-1."""

    first_id: int
    count: int = 65536

    def container_id(self, host_id: int) -> int:
        """The id as processes in the container see it; 65534 (nobody) for one that is not theirs."""
        inside = host_id - self.first_id
        return inside if 0 <= inside < self.count else 65534

    def host_id(self, container_id: int) -> int:
        """The id on the host of one in the container. Raises ``RejectedFault`` for one the container does not have."""
        if not 0 <= container_id < self.count:
            raise RejectedFault(
                f"owner {container_id} does not exist in a user namespace of {self.count} ids: give the container the "
                "host's (--userns host)"
            )
        return self.first_id + container_id


DEFAULT_RANGE: Final = IdRange(first_id=1_000_000)


def parse_subids(text: str) -> IdRange:
    """Pure. The range in the text of /etc/subuid (subuid(5)); `DEFAULT_RANGE` when there is none that is large enough."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] != _USER or not all(f.isascii() and f.isdigit() for f in fields[1:]):
            continue
        first_id, count = int(fields[1]), int(fields[2])
        if first_id > 0 and count >= IDS_MIN and first_id + count < 1 << 32:
            return IdRange(first_id=first_id, count=IDS_MIN)
    return DEFAULT_RANGE


def read_range(path: Path = Path("/etc/subuid")) -> IdRange:
    """Blocks. The host's range."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return parse_subids(file.read(_FILE_BYTES_MAX))
    except FileNotFoundError:
        return DEFAULT_RANGE
