"""How a distributed cluster is reached: one started here for the run, or one that is up, by its address or file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyimgano_dask.errors import ConfigError, RunError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_TIMEOUT_S = 15
WORKER_TIMEOUT_S = 60


@contextmanager
def connect(name: str, workers: int, *, allowed_failures: int = 0) -> Iterator[Client]:
    """A client of the cluster with this name, closed at the end of the block.

    `name` is `local-cluster` (`workers` single-threaded processes are started, and end with the block), an address or
    the path of a scheduler file. `allowed_failures` is how many worker deaths a task on a local cluster survives; other
    schedulers have settings of their own. Raises ConfigError when no scheduler answers there, RunError when it has no
    workers or those of a local cluster do not start.
    """
    from distributed import Client, LocalCluster
    from distributed.comm.addressing import get_address_host_port
    from distributed.utils import silence_logging_cmgr

    if name == "local-cluster":
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
        with cluster, Client(cluster) as client:
            yield client
        return
    try:
        address = _address_in(name) if name.endswith(".json") else name
        # Checked here, because a Client that was given no address at all holds the process for 30 s at its end.
        get_address_host_port(address)
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except FileNotFoundError:
        raise ConfigError(
            f"--scheduler: there is no scheduler file {name!r}; start a scheduler with "
            f"`dask scheduler --scheduler-file {name}`"
        ) from None
    except (OSError, ValueError, TypeError, TimeoutError) as error:
        raise ConfigError(
            f"--scheduler: no scheduler answers at {name!r} ({error}); start one with `dask scheduler` "
            "or give its address as it prints it"
        ) from None
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
    """The address in a scheduler file, as `dask scheduler --scheduler-file` writes it; OSError or ValueError if none.

    Read here, because Dask waits for a file that is not there without end.
    """
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    address = content.get("address") if isinstance(content, dict) else None
    if not isinstance(address, str):
        raise ValueError(f"the file has no text under the key address, such as tcp://127.0.0.1:8786: {content!r:.80}")
    return address
