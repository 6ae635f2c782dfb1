"""How a distributed cluster is reached: one started here for the run, or one that is up, by its address or file."""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

from pyimgano_dask.dataflow.undisturbed import undisturbed
from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.settings.run import TlsFiles

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

CONNECT_TIMEOUT_S = 15
WORKER_TIMEOUT_S = 60
ENCRYPTED_SCHEMES = ("tls", "wss")
TLS_FLAGS = "--tls-ca, --tls-cert and --tls-key"


@contextmanager
def connect(name: str, workers: int, *, tls: TlsFiles | None = None, allowed_failures: int = 0) -> Iterator[Client]:
    """A client of the cluster with this name, closed at the end of the block; it is not Dask's default client.

    `name` is `local-cluster` (`workers` single-threaded processes are started, and end with the block), an address or
    the path of a scheduler file. `tls` are the files for a cluster with TLS; without them Dask's own configuration
    holds. `allowed_failures` is how many worker deaths a task on a local cluster survives; other schedulers have
    settings of their own. Raises ConfigError when the files are no certificate and its key, when no scheduler answers
    there or it wants other certificates, RunError when it has no workers or those of a local cluster do not start.
    """
    with _started_here(workers, allowed_failures) if name == "local-cluster" else _running(name, tls) as client:
        yield client


@contextmanager
def _started_here(workers: int, allowed_failures: int) -> Iterator[Client]:
    with ExitStack() as stack:
        with undisturbed():
            client = stack.enter_context(_client_of_new_cluster(workers, allowed_failures))
        yield client


@contextmanager
def _client_of_new_cluster(workers: int, allowed_failures: int) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    try:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False, "allowed_failures": allowed_failures},
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:
        raise RunError(
            f"the workers of a local cluster do not start ({error}); a script that starts one calls below "
            'if __name__ == "__main__":'
        ) from error
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def _running(name: str, tls: TlsFiles | None) -> Iterator[Client]:
    from distributed.utils import silence_logging_cmgr

    address = _address_in(name) if name.endswith(".json") else name
    client = _client_of(name, address, _security(tls))
    with silence_logging_cmgr(logging.CRITICAL), client:
        try:
            client.wait_for_workers(1, timeout=WORKER_TIMEOUT_S)
        except TimeoutError:
            raise RunError(
                f"the scheduler at {name} has no workers after {WORKER_TIMEOUT_S} s; "
                f"start one with `dask worker {address}`"
            ) from None
        yield client


def _address_in(path: str) -> str:
    """The address in a scheduler file, as `dask scheduler --scheduler-file` writes it; ConfigError if there is none.

    Read here, because Dask waits for a file that is not there without end.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise ConfigError(
            f"--scheduler: there is no scheduler file {path!r}; start a scheduler with "
            f"`dask scheduler --scheduler-file {path}`"
        ) from None
    except (OSError, ValueError) as error:
        raise _no_answer(path, error) from None
    address = content.get("address") if isinstance(content, dict) else None
    if not isinstance(address, str):
        shown = f"the file has no text under the key address, such as tcp://127.0.0.1:8786: {content!r:.80}"
        raise _no_answer(path, shown)
    return address


def _client_of(name: str, address: str, security: Security) -> Client:
    """A connected client.

    What would end a connection otherwise than as a fault of the network is looked for before, because a Client that
    fails in such a way holds the process for half a minute at its end.
    """
    from distributed import Client
    from distributed.comm.addressing import get_address_host_port
    from distributed.comm.core import CommClosedError
    from distributed.versions import VersionMismatchWarning

    try:
        host, port = get_address_host_port(address)
        _check_encryption(name, address, security)
        if address.startswith("tls://"):
            _check_certificates(name, host, port, security.get_connection_args("client")["ssl_context"])
        with warnings.catch_warnings():
            # Versions are compared by check_versions, in words.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            return Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False, security=security)
    except CommClosedError as error:
        raise ConfigError(
            f"--scheduler: the scheduler at {name!r} closed the connection ({error}); one that takes encrypted "
            f"connections only is named tls://host:port, with {TLS_FLAGS}"
        ) from None
    except (OSError, ValueError, TypeError, TimeoutError) as error:
        raise _no_answer(name, error) from None


def _no_answer(name: str, reason: object) -> ConfigError:
    return ConfigError(
        f"--scheduler: no scheduler answers at {name!r} ({reason}); start one with `dask scheduler` "
        "or give its address as it prints it"
    )


def _security(tls: TlsFiles | None) -> Security:
    """What a client shows and trusts; Dask's own configuration where no files are given."""
    from distributed.security import Security

    if tls is None:
        return Security()
    _check_files(tls)
    return Security(require_encryption=True, tls_ca_file=tls.ca, tls_client_cert=tls.cert, tls_client_key=tls.key)


def _check_files(tls: TlsFiles) -> None:
    for flag, path in (("--tls-ca", tls.ca), ("--tls-cert", tls.cert), ("--tls-key", tls.key)):
        if not os.path.isfile(path):
            raise ConfigError(f"{flag}: there is no file {path!r}; give the path of a PEM file")
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{flag}: {path!r} cannot be read by this user; change its owner or permissions")
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except ssl.SSLError:
        raise ConfigError(f"--tls-ca: {tls.ca!r} holds no certificate in PEM form; give the authority's") from None
    try:
        context.load_cert_chain(tls.cert, tls.key, password=lambda: _refuse_passphrase(tls.key))
    except ssl.SSLError as error:
        raise ConfigError(
            f"--tls-cert, --tls-key: {tls.cert!r} and {tls.key!r} are not a certificate and its private key in PEM "
            f"form ({error.reason or error})"
        ) from None


def _refuse_passphrase(key: str) -> NoReturn:
    raise ConfigError(
        f"--tls-key: {key!r} has a passphrase, which nobody can type in a batch job; give a key without one, "
        "readable for its owner alone"
    )


def _check_encryption(name: str, address: str, security: Security) -> None:
    """Raise ConfigError when encryption is wanted on one side only, as far as the address tells."""
    is_encrypted = address.partition("://")[0] in ENCRYPTED_SCHEMES
    if security.require_encryption and not is_encrypted:
        where = f" (its address is {address})" if name != address else ""
        raise ConfigError(
            f"--scheduler: the scheduler at {name!r} takes no encrypted connections{where}, and {TLS_FLAGS} or Dask's "
            "configuration ask for them; leave them out, or start the scheduler and its workers with certificates"
        )
    if is_encrypted and security.get_connection_args("client")["ssl_context"] is None:
        raise ConfigError(f"--scheduler: the scheduler at {name!r} takes encrypted connections only; give {TLS_FLAGS}")


def _check_certificates(name: str, host: str, port: int, context: ssl.SSLContext) -> None:
    """Raise ConfigError when scheduler and client do not accept each other; silent when nobody answers."""
    try:
        with (
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            # With TLS 1.3 a refused certificate is told after the client's side of the handshake is over.
            encrypted.recv(1)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"--tls-ca: the certificate of the scheduler at {name!r} is not one of this authority "
            f"({error.verify_message}); give the certificate of the authority that signed it"
        ) from None
    except ssl.SSLError as error:
        reason = str(error.reason).replace("_", " ").lower()
        if "alert" in reason:
            raise ConfigError(
                f"--tls-cert: the scheduler at {name!r} refuses this certificate ({reason}); give one that its "
                "authority signed"
            ) from None
        raise ConfigError(
            f"--scheduler: the scheduler at {name!r} takes no encrypted connections ({reason}); give its tcp:// "
            f"address without {TLS_FLAGS}"
        ) from None
    except OSError:
        return
