"""An S3 server on 127.0.0.1 (moto's), behind a proxy that refuses requests, cuts connections and changes bytes."""

import http.client
import logging
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from threading import Event, Lock, Thread
from typing import Literal

import pytest

Fault = Literal["500", "cut", "wrong", "slow", "stall"]

STALL_S = 10.0
"""Longer than the client waits for a byte."""

CLIENT = {"read_timeout": 8, "connect_timeout": 5, "retries": {"total_max_attempts": 1}}
"""Of botocore, whose own retries would hide a fault."""


class ObjectStore:
    """The proxy, with the requests that it has seen and the faults that it is to make.

    Attributes:
        requests: "GET /bucket/key", in their order.
        latency_s, bytes_per_s: of all connections together; none by default.
    """

    latency_s, bytes_per_s = 0.0, math.inf

    def __init__(self, server: tuple[str, int]) -> None:
        self.server, self.requests = server, list[str]()
        self._faults: list[tuple[re.Pattern, Fault]] = []
        self._lock, self._line = Lock(), Lock()
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        Thread(target=self._proxy.serve_forever, daemon=True).start()

    @property
    def options(self) -> dict:
        """Of s3fs."""
        url = f"http://127.0.0.1:{self._proxy.server_port}"
        return {"key": "key", "secret": "secret", "endpoint_url": url, "config_kwargs": CLIENT}

    def fail(self, request: str, *faults: Fault) -> None:
        """Make these faults, one at each of the next requests that match."""
        self._faults += [(re.compile(request), fault) for fault in faults]

    def heal(self) -> None:
        """Make no more faults, and forget the requests."""
        self._faults.clear()
        self.requests.clear()

    def count(self, request: str) -> int:
        """The number of requests that match."""
        return sum(bool(re.search(request, seen)) for seen in self.requests)

    def fault_of(self, request: str) -> Fault | None:
        """The fault to make at a request, which is noted."""
        with self._lock:
            self.requests.append(request)
            for number, (pattern, fault) in enumerate(self._faults):
                if pattern.search(request):
                    del self._faults[number]
                    return fault
        return None

    def wait(self, size: int) -> None:
        """Take the time of an answer."""
        time.sleep(self.latency_s)
        with self._line:
            time.sleep(size / self.bytes_per_s)

    def close(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _pass_on(self) -> None:
            fault = store.fault_of(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fault == "500":
                self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>", None)
                return
            sent, own = dict(self.headers), _OWN
            if fault == "wrong":  # behind the back of S3's own checksums, which a store need not rely on
                body = _changed(body) if self.command == "PUT" else body
                sent = {name: value for name, value in sent.items() if "checksum" not in name.lower()}
                own = _OWN | _CHECKSUMS
            connection = http.client.HTTPConnection(*store.server)
            connection.request(self.command, self.path, body, sent)
            reply = connection.getresponse()
            headers = {name: value for name, value in reply.getheaders() if name.lower() not in own}
            self._answer(reply.status, headers, reply.read(), fault, reply.getheader("Content-Length"))
            connection.close()

        def _answer(
            self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None, length: str | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
            self.end_headers()
            if fault == "stall":
                time.sleep(STALL_S)
            if fault == "wrong" and self.command == "GET":
                body = _changed(body)
            if fault == "cut":
                self.close_connection = True
                body = body[: len(body) // 2]
            store.wait(len(body))
            pieces = 10 if fault == "slow" else 1
            step = max(1, -(-len(body) // pieces))
            with suppress(ConnectionError):  # a client that waits no longer
                for start in range(0, len(body), step):
                    self.wfile.write(body[start : start + step])
                    self.wfile.flush()
                    time.sleep(0.05 if fault == "slow" else 0)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    return Handler


_OWN = {"content-length", "connection", "server", "date", "transfer-encoding"}

_CHECKSUMS = {f"x-amz-checksum-{name}" for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256", "type")}


def _changed(body: bytes) -> bytes:
    """The same with other bits in the middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0x10]) + body[middle + 1 :] if body else body


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running server that fsspec knows as s3://, with the bucket `bucket`; skips where moto or s3fs is missing."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed (the extra `dev`)")
    pytest.importorskip("s3fs", reason="s3fs is not installed (the extra `dev`)")
    import fsspec

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    store = ObjectStore(server.get_host_and_port())
    before = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = store.options
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        store.heal()
        yield store
    finally:
        fsspec.config.conf.pop("s3") if before is None else fsspec.config.conf.update(s3=before)
        store.close()
        server.stop()


def serve(pipe: Connection, latency_s: float, bytes_per_s: float) -> None:
    """Serve in this process until it is ended; sends the options of s3fs, without the short time-outs of tests."""
    with object_store() as store:
        store.latency_s, store.bytes_per_s = latency_s, bytes_per_s
        options = store.options
        del options["config_kwargs"]
        pipe.send(options)
        Event().wait()
