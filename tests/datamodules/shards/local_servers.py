"""Real servers on this machine: HTTP that can misbehave, and S3."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import boto3
from moto.server import ThreadedMotoServer

# What a server does wrong with a request: it gets the handler, the content and how often the file was asked for.
Fault = Callable[["Handler", bytes, int], None]


class Handler(BaseHTTPRequestHandler):
    """A folder, with ranges; faults by the name of the file."""

    protocol_version = "HTTP/1.1"
    server: FolderServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        name = self.path.lstrip("/")
        path = self.server.folder / name
        if body:
            with self.server.counting:
                self.server.asked[name] += 1
        if not path.is_file():
            self.refuse(404)
            return
        content = path.read_bytes()
        fault = self.server.faults.get(name)
        if fault and body:
            fault(self, content, self.server.asked[name])
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            content = content[first : last + 1]
        self.headed(206 if wanted else 200, len(content))
        if body:
            self.wfile.write(content)

    def headed(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def refuse(self, status: int) -> None:
        self.headed(status, 0)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


class FolderServer(ThreadingHTTPServer):
    """asked: how often each file was asked for. faults: what goes wrong, by name."""

    daemon_threads = True
    block_on_close = False
    folder: Path
    faults: dict[str, Fault]
    asked: Counter[str]
    counting: threading.Lock

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def served(folder: Path, faults: Mapping[str, Fault] = MappingProxyType({})) -> Iterator[FolderServer]:
    """faults: by file name."""
    server = FolderServer(("127.0.0.1", 0), Handler)
    server.folder, server.asked, server.counting = folder, Counter(), threading.Lock()
    server.faults = dict(faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def unavailable(times: int) -> Fault:
    def fault(handler: Handler, content: bytes, asked: int) -> None:
        if asked <= times:
            handler.refuse(503)
        else:
            handler.headed(200, len(content))
            handler.wfile.write(content)

    return fault


def cuts_the_connection(handler: Handler, content: bytes, asked: int) -> None:
    handler.headed(200, len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def flips_a_bit(handler: Handler, content: bytes, asked: int) -> None:
    damaged = bytearray(content)
    damaged[len(damaged) // 3] ^= 4
    handler.headed(200, len(damaged))
    handler.wfile.write(damaged)


def is_silent(handler: Handler, content: bytes, asked: int) -> None:
    time.sleep(20)


def trickles(handler: Handler, content: bytes, asked: int) -> None:
    handler.headed(200, len(content))
    for byte in range(200):
        handler.wfile.write(content[byte : byte + 1])
        handler.wfile.flush()
        time.sleep(0.05)


def never_ends(handler: Handler, content: bytes, asked: int) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(10_000):
        handler.wfile.write(content)
    handler.close_connection = True


@contextmanager
def s3_bucket(folder: Path, bucket: str = "music") -> Iterator[str]:
    """An S3 server with the folder's files in `bucket/shards/`; gives its endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    try:
        client.create_bucket(Bucket=bucket)
        for path in folder.iterdir():
            if path.suffix in (".tar", ".parquet"):
                client.upload_file(str(path), bucket, f"shards/{path.name}")
        yield endpoint
    finally:
        client.close()
        server.stop()
