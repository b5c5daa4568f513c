"""A guest book over Redis, with nothing but Python's standard library."""

import html
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PASSWORD = Path("/run/secrets/db_password").read_bytes().strip()
ENTRY_MAX = 200


def redis(*commands: tuple[bytes, ...]) -> list[bytes | list[bytes]]:
    """The answers to commands, over one connection. Raises ``OSError`` when there is no database."""
    with socket.create_connection(("db", 6379), timeout=3) as connection, connection.makefile("rb") as answers:
        for command in ((b"AUTH", PASSWORD), *commands):
            parts = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in command)
            connection.sendall(b"*%d\r\n%s" % (len(command), parts))
        return [answer(answers) for _ in range(len(commands) + 1)][1:]


def answer(file):
    kind, rest = (line := file.readline())[:1], line[1:-2]
    if kind == b"-" or not kind:
        raise OSError(f"the database says {rest.decode() or 'nothing'}")
    if kind == b"$":
        return file.read(int(rest) + 2)[:-2] if int(rest) >= 0 else b""
    return [answer(file) for _ in range(int(rest))] if kind == b"*" else rest


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/healthz":
            self.say(200, "fine\n")
            return
        try:
            visits, entries = redis((b"INCR", b"visits"), (b"LRANGE", b"book", b"0", b"9"))
        except OSError as error:
            self.say(503, f"no database: {error}\n")
            return
        lines = "".join(f"<li>{html.escape(entry.decode(errors='replace'))}</li>" for entry in entries)
        self.say(200, f"<p>visit {visits.decode()}, served by {socket.gethostname()}</p><ul>{lines}</ul>\n")

    def do_POST(self) -> None:
        entry = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), ENTRY_MAX))
        try:
            redis((b"LPUSH", b"book", entry))
        except OSError as error:
            self.say(503, f"not written: {error}\n")
        else:
            self.say(201, "written\n")

    def say(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("guest book open", flush=True)
ThreadingHTTPServer(("", 8000), Page).serve_forever()
