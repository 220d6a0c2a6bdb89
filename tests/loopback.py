"""A real HTTP server on loopback that serves files as archives are served, and can be told to behave badly."""

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Site:
    """What is served, how, and what was asked for."""

    files: dict[str, bytes]  # by path, such as /an4.tar.gz
    url: str = ""
    ranges: bool = True  # whether Range is understood
    if_range: bool = True  # whether If-Range is
    etags: bool = True
    cuts: list[int] = field(default_factory=list)  # answers to come: the connection is cut after so many bytes
    refusals: list[int] = field(default_factory=list)  # answers to come: a status instead of the file
    headers: dict[str, str | None] = field(default_factory=dict)  # to add or, as None, to leave out
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of every request

    def asked_for(self, path: str) -> list[str | None]:
        return [asked_range for asked, asked_range in self.asked if asked == path]


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    site = Site(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, *_args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    path = unquote(handler.path)
    asked_range, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    site.asked.append((path, asked_range))
    content = site.files.get(path)
    if content is None or site.refusals:
        status = 404 if content is None else site.refusals.pop(0)
        return send(handler, status, {"Content-Length": "0"}, b"")
    tag = f'"{hashlib.md5(content).hexdigest()}"'
    headers = {"Content-Length": str(len(content)), **({"ETag": tag} if site.etags else {})}
    status, found = 200, re.fullmatch(r"bytes=(\d+)-", asked_range or "")
    if found and site.ranges and (condition in (None, tag) or not site.if_range):
        start = int(found[1])
        if start >= len(content):
            return send(handler, 416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}, b"")
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        content = content[start:]
        headers["Content-Length"] = str(len(content))
        status = 206
    headers = {name: value for name, value in {**headers, **site.headers}.items() if value is not None}
    cut = site.cuts.pop(0) if site.cuts else None
    send(handler, status, headers, content[:cut])
    if cut is not None:
        handler.close_connection = True
        # a reset, not an orderly end
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0)) if cut % 2 else None
    elif "Content-Length" not in headers:
        handler.close_connection = True


def send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)
