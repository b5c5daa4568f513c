"""Load and memory of the host, for Prometheus."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

PROC = Path("/host/proc")


def metrics() -> str:
    load = PROC.joinpath("loadavg").read_text().split()
    memory = dict(line.split(":") for line in PROC.joinpath("meminfo").read_text().splitlines())
    free = int(memory["MemAvailable"].split()[0]) * 1024
    node = os.environ["NODE"]
    return f'node_load1{{node="{node}"}} {load[0]}\nnode_memory_available_bytes{{node="{node}"}} {free}\n'


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = metrics().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
HTTPServer(("", 9101), Page).serve_forever()
