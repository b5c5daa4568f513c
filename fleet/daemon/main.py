"""``fleetd`` and ``fleet daemon``: configuration, logs, the event loop, signals, exit codes.

Exit codes: 0 stopped as asked, 1 could not go on, 2 configuration wrong, 70 a bug (``InvariantError``).
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from collections.abc import Sequence

import uvloop

from fleet import __version__, errors, logs, traces
from fleet.daemon.config import load_config
from fleet.daemon.memory import prepare_allocator
from fleet.daemon.rootless.entering import enter
from fleet.daemon.rootless.leaving import leave
from fleet.logs import get_logger

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT; exits the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = load_config(given)
        if config.rootless and not config.rootless_entered:
            enter(config.exec_root, given)
    except errors.FleetError as cause:
        sys.stderr.write(f"fleetd: {cause}\n")
        sys.exit(cause.exit_code)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two or three descriptors a container
    prepare_allocator()
    logs.configure(level=config.log_level, form=config.log_format)
    log = get_logger("fleetd")

    from fleet.daemon.daemon import Daemon  # half a second of work, of no use to a process that starts itself anew

    exporter = traces.Exporter(
        config.otlp_endpoint, resource={"host.name": config.hostname, "service.version": __version__}
    )
    if config.otlp_endpoint:
        exporter.start()
        traces.configure(exporter)

    async def run() -> None:
        daemon = Daemon(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, daemon.stop)
        await daemon.run()

    try:
        uvloop.run(run())
    except errors.FleetError as cause:
        log.error("fleetd can not go on", cause=str(cause))
        sys.exit(cause.exit_code)
    except BaseExceptionGroup as group:
        log.error("fleetd can not go on", cause=repr(group.exceptions[0]), trace=group)
        sys.exit(1)
    finally:
        if config.otlp_endpoint:
            exporter.stop()
        if config.rootless:
            running = leave(data_root=config.data_root, exec_root=config.exec_root)
            log.info("containers go on" if running else "namespaces ended", containers=running)


if __name__ == "__main__":
    main()
