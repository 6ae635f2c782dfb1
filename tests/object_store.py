"""A real S3 server on loopback, and a line to it that can be cut in the middle of a body."""

from __future__ import annotations

import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.waiting import wait_until

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class ObjectStore:
    """A running server: its endpoint, and the environment that leads every command to it."""

    host: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def env(self) -> Mapping[str, str]:
        return environment(self.endpoint)

    @contextmanager
    def new_bucket(self) -> Iterator[Bucket]:
        """An empty bucket; while the block runs, `s3://` leads to this store."""
        files = s3fs.S3FileSystem(
            key="tester",
            secret="secret",
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        name = f"line-{uuid.uuid4().hex[:12]}"
        files.mkdir(name)
        with reached_by(self.env):
            yield Bucket(name, files, self)


@dataclass(frozen=True)
class Bucket:
    """A bucket, and `files`, which looks at it by another way than the package does."""

    name: str
    files: Any
    store: ObjectStore

    def url(self, *names: str) -> str:
        """URL of an object."""
        return "/".join((f"s3://{self.name}", *names))

    def put(self, name: str, data: bytes) -> str:
        """Store an object; returns its URL."""
        self.files.call_s3("put_object", Bucket=self.name, Key=name, Body=data)
        return self.url(name)

    def put_folder(self, folder: Path, name: str) -> str:
        """Store every file below a local folder; returns the URL of the folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
        return self.url(name)

    def get(self, name: str) -> bytes:
        """Content of an object."""
        return bytes(self.files.cat_file(f"{self.name}/{name}"))

    def names(self, below: str = "") -> list[str]:
        """Every object whose name begins like this, without that beginning."""
        prefix = f"{self.name}/{below}"
        return sorted(path.removeprefix(prefix) for path in self.files.find(self.name) if path.startswith(prefix))

    def hashes(self, below: str) -> dict[str, str]:
        """SHA-256 of every object below a folder, by relative name."""
        return {name: sha256(self.get(f"{below}/{name}")).hexdigest() for name in self.names(f"{below}/")}


@contextmanager
def reached_by(env: Mapping[str, str]) -> Iterator[None]:
    """Set the environment of this process, and have its file systems look at it, while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            s3fs.S3FileSystem.clear_instance_cache()


def environment(endpoint: str) -> dict[str, str]:
    """What a user sets to reach a store; nothing of the machine's own configuration is read."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def start_object_store(folder: Path) -> Iterator[ObjectStore]:
    """An empty store, as a process of its own that ends with the block; its log is in `folder`."""
    log = folder / "object-store.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=out, stderr=out
        )

    def address() -> re.Match[str] | None:
        return re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))

    try:
        wait_until(lambda: address() is not None or process.poll() is not None, "the object store listens")
        found = address()
        assert found is not None, log.read_text(errors="replace")
        yield ObjectStore("127.0.0.1", int(found[1]))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@dataclass
class Cuts:
    """Which answers or uploads a line cuts: `n` of those whose method and path match; all of them for `n` below 0."""

    method: str
    path: str
    n: int
    done: int = field(default=0, init=False)

    def take(self, method: str, path: str) -> bool:
        """Whether the request that begins is one to cut; counts it."""
        if method != self.method or not re.search(self.path, path) or 0 <= self.n <= self.done:
            return False
        self.done += 1
        return True


class CutLine(socketserver.ThreadingTCPServer):
    """Forwards to a store, and closes chosen connections after half of the body of a request (PUT) or answer (GET)."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, store: ObjectStore, cuts: Cuts) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.upstream = (store.host, store.port)
        self.cuts = cuts
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def env(self) -> Mapping[str, str]:
        return environment(self.endpoint)


@contextmanager
def cut_line(store: ObjectStore, method: str, path: str, n: int) -> Iterator[CutLine]:
    """A line that cuts the first `n` matching bodies, every one for `n` below 0."""
    with CutLine(store, Cuts(method, path, n)) as line:
        thread = threading.Thread(target=line.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield line
        finally:
            line.shutdown()
            thread.join()


class _Connection(socketserver.BaseRequestHandler):
    """One request and its answer; the store closes the connection after each."""

    server: CutLine

    def handle(self) -> None:
        data = _up_to_the_end_of_the_head(self.request)
        if HEAD_END not in data:
            return
        method, path = data.split(b" ", 2)[:2]
        with self.server.lock:
            is_cut = self.server.cuts.take(method.decode(), path.decode())
        with suppress(OSError), socket.create_connection(self.server.upstream) as upstream:
            if is_cut and method == b"PUT":
                # The client sends no body before the store has told it to go on.
                threading.Thread(target=_forward, args=(upstream, self.request), daemon=True).start()
                _forward_half(self.request, upstream, data)
                self.request.shutdown(socket.SHUT_RDWR)
                return
            upstream.sendall(data)
            threading.Thread(target=_forward, args=(self.request, upstream), daemon=True).start()
            if is_cut:
                _forward_half(upstream, self.request, _up_to_the_end_of_the_head(upstream))
            else:
                _forward(upstream, self.request)


def _up_to_the_end_of_the_head(source: socket.socket) -> bytes:
    data = b""
    while HEAD_END not in data and (more := source.recv(1 << 16)):
        data += more
    return data


def _forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def _forward_half(source: socket.socket, target: socket.socket, data: bytes) -> None:
    """Forward a message, of which `data` is there already, up to the middle of its body."""
    head, body = data.split(HEAD_END, 1)
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    half = int(length[1]) // 2 if length else 0
    target.sendall(head + HEAD_END + body[:half])
    n_sent = len(body)
    while n_sent < half and (more := source.recv(half - n_sent)):
        target.sendall(more)
        n_sent += len(more)
