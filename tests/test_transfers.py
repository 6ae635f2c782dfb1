"""What is tried again, how often, and what it ends with."""

from __future__ import annotations

import errno
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, NoCredentialsError
from s3fs.errors import translate_boto_error

from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.images.reading import read_bytes
from pyimgano_dask.transfers import canonical, is_transient, tried_again


def answer(status: int, code: str) -> ClientError:
    """What botocore raises for an answer of a store."""
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("reset"), True),
        (TimeoutError("slow"), True),
        (OSError(errno.ENETUNREACH, "no way"), True),
        (aiohttp.ClientPayloadError("not completed"), True),
        (aiohttp.ServerDisconnectedError(), True),
        (ConnectionClosedError(endpoint_url="http://line4"), True),
        (answer(503, "SlowDown"), True),
        (translate_boto_error(answer(500, "InternalError")), True),
        (translate_boto_error(answer(502, "Bad Gateway")), True),
        (wrapped(FileNotFoundError("http://line4/a.png"), answer(503, "ServiceUnavailable")), True),
        (wrapped(OSError("ClientPayloadError"), aiohttp.ClientPayloadError("not completed")), True),
        (FileNotFoundError("gone"), False),
        (translate_boto_error(answer(404, "NoSuchKey")), False),
        (translate_boto_error(answer(403, "AccessDenied")), False),
        (translate_boto_error(answer(403, "SignatureDoesNotMatch")), False),
        (PermissionError("closed"), False),
        (NoCredentialsError(), False),
        (ssl.SSLCertVerificationError("untrusted"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("odd"), False),
    ],
    ids=repr,
)
def test_what_is_transient(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


class Failing:
    """A transfer that fails a number of times."""

    def __init__(self, error: Exception, n_times: int) -> None:
        self.error = error
        self.n_left = n_times
        self.n_calls = 0

    def __call__(self) -> str:
        self.n_calls += 1
        if self.n_left:
            self.n_left -= 1
            raise self.error
        return "done"


class TestTriedAgain:
    def test_until_it_is_done(self) -> None:
        transfer = Failing(ConnectionResetError("reset"), 2)
        assert tried_again(transfer, (0, 0, 0)) == "done"
        assert transfer.n_calls == 3

    def test_as_often_as_there_are_pauses(self) -> None:
        transfer = Failing(ConnectionResetError("reset"), 9)
        with pytest.raises(ConnectionResetError):
            tried_again(transfer, (0, 0))
        assert transfer.n_calls == 3

    @pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("closed"), ValueError("odd")])
    def test_not_in_vain(self, error: Exception) -> None:
        transfer = Failing(error, 9)
        with pytest.raises(type(error)):
            tried_again(transfer)
        assert transfer.n_calls == 1

    def test_errors_of_a_client_become_oserrors(self) -> None:
        with pytest.raises(OSError, match="NoCredentialsError: Unable to locate credentials"):
            tried_again(Failing(NoCredentialsError(), 1))

    @pytest.mark.parametrize("error", [ConfigError("no"), InputError("read", "OSError", "no"), KeyError("no")])
    def test_what_is_said_in_words_passes(self, error: Exception) -> None:
        with pytest.raises(type(error)):
            tried_again(Failing(error, 1))


@contextmanager
def web_server(n_failures: int) -> Iterator[tuple[str, list[str]]]:
    """A web server that answers 503 to its first requests, then b"image"; yields its address and the methods asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            asked.append(self.command)
            if self.path == "/gone.png":
                self.send_error(404)
            elif len(asked) <= n_failures:
                self.send_error(503)
            else:
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(b"image")

        do_GET = do_HEAD = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_web_server_that_fails_for_a_moment() -> None:
    with web_server(n_failures=3) as (address, asked):
        assert read_bytes(f"{address}/a.png", base_dir="/", max_bytes=100) == b"image"
        assert len(asked) > 3


def test_a_file_that_is_not_on_a_web_server() -> None:
    with web_server(n_failures=0) as (address, asked):
        with pytest.raises(InputError) as fault:
            read_bytes(f"{address}/gone.png", base_dir="/", max_bytes=100)
        assert (fault.value.kind, len(asked)) == ("FileNotFoundError", 2)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3a://line4/run/", "s3://line4/run"),
        ("s3://line4/run", "s3://line4/run"),
        ("memory://line4/run/", "memory:///line4/run"),
        ("zip://in/::s3://line4/cam.zip", "zip://in/::s3://line4/cam.zip"),
        ("nowhere://line4/run", "nowhere://line4/run"),
    ],
)
def test_one_spelling(url: str, expected: str) -> None:
    assert canonical(url) == expected
