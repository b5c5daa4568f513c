"""Figures of this host: its containers, what each uses, images. A container is read by one question to its supervisor."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Final

from fleet import errors
from fleet.containers.engine import ContainerEngine
from fleet.containers.record import Container, Status
from fleet.images import ImageStore
from fleet.metrics import Family, Sample
from fleet.node_runtime.events import ContainerStats

__all__ = ["host_families", "network_bytes"]

_CONTAINERS_MAX: Final = 1000
"""Containers with series of their own; the others are only counted."""
_AT_ONCE: Final = 16
_LABEL: Final = "com.docker.swarm."

_Use = tuple[Container, ContainerStats, tuple[int, int] | None]


async def host_families(engine: ContainerEngine, images: ImageStore) -> list[Family]:
    """Containers that end meanwhile are left out."""
    containers = engine.list()
    up = sorted((each for each in containers if each.is_up), key=lambda each: each.id)
    statuses = Counter(container.state.status for container in containers)
    return [
        Family(
            "fleet_containers",
            "Containers of this host",
            "gauge",
            [Sample((("status", status.value),), statuses[status]) for status in Status],
        ),
        Family("fleet_images", "Images of this host", "gauge", [Sample((), len(images.list()))]),
        images.fetches_s.family(),
        *_use_families(await _use(engine, up[:_CONTAINERS_MAX])),
    ]


async def _use(engine: ContainerEngine, containers: list[Container]) -> list[_Use]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(container: Container) -> ContainerStats | None:
        async with room:
            try:
                return await engine.stats(container.id)
            except errors.FleetError:
                return None

    figures = await asyncio.gather(*(one(container) for container in containers))
    traffic = await asyncio.to_thread(lambda: [_traffic(container) for container in containers])
    return [
        (container, stats, bytes_)
        for container, stats, bytes_ in zip(containers, figures, traffic, strict=True)
        if stats is not None
    ]


def _traffic(container: Container) -> tuple[int, int] | None:
    """Received and sent bytes of the container's own interfaces; None where it has no network namespace of its own."""
    if not container.config.network_mode.has_sandbox or not container.state.pid:
        return None
    try:
        return network_bytes(Path(f"/proc/{container.state.pid}/net/dev").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # it ended


def network_bytes(text: str) -> tuple[int, int]:
    """Received and sent bytes of all interfaces but loopback, from ``/proc/PID/net/dev`` (proc_pid_net(5)): the first and the
    ninth figure of a line."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, figures = line.partition(":")
        if name.strip() != "lo":
            columns = figures.split()
            received += int(columns[0])
            sent += int(columns[8])
    return received, sent


def _use_families(use: list[_Use]) -> list[Family]:
    labels = [
        (
            ("container", container.name),
            ("service", container.labels.get(f"{_LABEL}service.name", "")),
            ("task_id", container.labels.get(f"{_LABEL}task.id", "")),
        )
        for container, _, _ in use
    ]
    stats = [each for _, each, _ in use]
    net = [(key, each) for key, (_, _, each) in zip(labels, use, strict=True) if each is not None]

    def counter(name: str, help_: str, values: list[float]) -> Family:
        return Family(name, help_, "counter", [Sample(key, value) for key, value in zip(labels, values, strict=True)])

    def gauge(name: str, help_: str, values: list[float]) -> Family:
        return Family(name, help_, "gauge", [Sample(key, value) for key, value in zip(labels, values, strict=True)])

    return [
        counter("fleet_container_cpu_seconds_total", "CPU time used", [s.cpu_usage_ns / 1e9 for s in stats]),
        counter(
            "fleet_container_cpu_throttled_seconds_total",
            "Time its CPU limit held it back",
            [s.cpu_throttled_ns / 1e9 for s in stats],
        ),
        gauge("fleet_container_memory_bytes", "Memory used, with page cache", [s.memory_usage_bytes for s in stats]),
        gauge(
            "fleet_container_memory_working_set_bytes",
            "Memory used, without page cache that is not in use",
            [max(s.memory_usage_bytes - s.memory_inactive_file_bytes, 0) for s in stats],
        ),
        gauge("fleet_container_memory_limit_bytes", "Memory limit, 0 is none", [s.memory_limit_bytes for s in stats]),
        counter("fleet_container_oom_kills_total", "Processes killed for want of memory", [s.oom_kills for s in stats]),
        gauge("fleet_container_processes", "Processes and threads", [s.pids for s in stats]),
        counter("fleet_container_block_read_bytes_total", "Read from devices", [s.block_read_bytes for s in stats]),
        counter("fleet_container_block_write_bytes_total", "Written to devices", [s.block_write_bytes for s in stats]),
        Family(
            "fleet_container_network_receive_bytes_total",
            "Received by its interfaces",
            "counter",
            [Sample(key, each[0]) for key, each in net],
        ),
        Family(
            "fleet_container_network_transmit_bytes_total",
            "Sent by its interfaces",
            "counter",
            [Sample(key, each[1]) for key, each in net],
        ),
    ]
