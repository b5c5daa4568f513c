"""Stands in for fleetd where only the lab's mechanics are tested: takes its options, answers ``GET /_ping``, notes SIGTERM."""

from __future__ import annotations

import argparse
import http.server
import signal
import socketserver
import sys
from pathlib import Path
from types import FrameType


class Ping(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"OK")

    def address_string(self) -> str:
        return "lab"


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("config", "data-root", "exec-root", "host", "cgroup-parent", "hostname", "log-format", "die-saying"):
        parser.add_argument(f"--{option}")
    options = parser.parse_args()
    if options.die_saying:
        sys.exit(options.die_saying)

    def end(signum: int, _: FrameType | None) -> None:
        Path(options.data_root, "ended-by").write_text(signal.Signals(signum).name)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    path = Path(options.host.removeprefix("unix://"))
    path.unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(str(path), Ping) as server:
        server.daemon_threads = True
        print(f"{options.hostname} is up", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
