"""Producer and worker of a queue in Redis: `produce` puts pieces of work into it and counts, `consume` does them.

With METRICS_PORT the producer tells Prometheus there how many pieces wait.
"""

import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

PIECE_S = int(os.environ.get("PIECE_MS", "50")) / 1000
PAUSE_S = int(os.environ.get("PAUSE_MS", "10")) / 1000
METRICS_PORT = int(os.environ.get("METRICS_PORT", "0"))
stopping = False


class Redis:
    """One connection; every method waits until there is a database."""

    def __init__(self) -> None:
        self._file = None

    def __call__(self, *command: str):
        parts = "".join(f"${len(part.encode())}\r\n{part}\r\n" for part in command)
        while not stopping:
            try:
                if self._file is None:
                    self._socket = socket.create_connection(("queue", 6379), timeout=5)
                    self._file = self._socket.makefile("rb")
                self._socket.sendall(f"*{len(command)}\r\n{parts}".encode())
                return self._answer()
            except OSError as error:
                print(f"no queue yet: {error}")
                self._file = None
                time.sleep(0.5)
        sys.exit(0)

    def _answer(self):
        line = self._file.readline()
        if not line or line[:1] == b"-":
            raise OSError(line.decode() or "the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return self._file.read(int(rest) + 2)[:-2].decode() if int(rest) >= 0 else None
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))] if int(rest) >= 0 else None
        return int(rest) if kind == b":" else rest.decode()


def stop(*_: object) -> None:
    global stopping
    stopping = True


class Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"# TYPE queue_waiting gauge\nqueue_waiting {Redis()('LLEN', 'todo')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def produce(redis: Redis) -> None:
    if METRICS_PORT:
        threading.Thread(target=HTTPServer(("", METRICS_PORT), Metrics).serve_forever, daemon=True).start()
    number = said = 0
    while not stopping:
        if redis("LLEN", "todo") < 200:
            number += 1
            redis("LPUSH", "todo", f"piece {number}")
        if time.monotonic() - said > 1:
            said = time.monotonic()
            print(f"waiting {redis('LLEN', 'todo')}, done {redis('GET', 'done') or 0}")
        time.sleep(PAUSE_S)


def consume(redis: Redis) -> None:
    me, count = socket.gethostname(), 0
    while not stopping:
        # Into a list of its own, so that a piece whose worker dies is not lost: the next one of that name begins with it.
        if redis("LMOVE", "todo", f"doing:{me}", "RIGHT", "LEFT") is None:
            time.sleep(0.1)
            continue
        time.sleep(PIECE_S)
        redis("INCR", "done")
        redis("DEL", f"doing:{me}")
        count += 1
    print(f"{me} did {count} pieces and ends")


signal.signal(signal.SIGTERM, stop)
(produce if sys.argv[1:] == ["produce"] else consume)(Redis())
