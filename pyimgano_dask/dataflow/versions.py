"""Versions of the packages whose work ends up in files, here and on a cluster."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.version import __version__

if TYPE_CHECKING:
    from distributed import Client

ANSWER_TIMEOUT_S = 10.0
SHOWN_PLACES = 3
SCHEDULER = "the scheduler"

# A name stands for the first of its distributions that is installed.
_OPENCV = [f"opencv-{kind}" for kind in ("python-headless", "python", "contrib-python-headless", "contrib-python")]
FOR_BYTES: Mapping[str, Sequence[str]] = {
    "numpy": ["numpy"],
    "OpenCV": _OPENCV,
    "numba": ["numba"],
    "pillow": ["pillow"],
    "zarr": ["zarr"],
    "numcodecs": ["numcodecs"],
}
# Of some detectors only; a library that is not named here is the distribution of its name.
OF_DETECTORS: Mapping[str, Sequence[str]] = {
    "onnxruntime": ["onnxruntime", "onnxruntime-gpu"],
    **{name: [name] for name in ("pyimgano", "scikit-image", "scikit-learn", "scipy", "timm", "torch", "torchvision")},
}
FOR_MESSAGES: Mapping[str, Sequence[str]] = {
    name: [name] for name in ("python", "dask", "distributed", "msgpack", "cloudpickle", "pydantic")
}
PACKAGES = {**FOR_BYTES, **OF_DETECTORS, **FOR_MESSAGES}

_OWN_VERSION = "pyimgano_dask.version:__version__"


def package_versions(libraries: Collection[str] = ()) -> dict[str, str]:
    """Version here of each package that bytes depend on: with other ones the same run may write other bytes.

    `libraries` are those of the run's detector (`Detector.libraries`). What is not installed is left out.
    """
    packages = {**FOR_BYTES, **_of_detectors(libraries)}
    installed = {name: installed_version(distributions) for name, distributions in packages.items()}
    return {"pyimgano-dask": __version__, **{name: version for name, version in installed.items() if version}}


def _of_detectors(libraries: Collection[str]) -> dict[str, Sequence[str]]:
    return {name: OF_DETECTORS.get(name, [name]) for name in sorted(libraries) if name not in FOR_BYTES}


def installed_version(distributions: Sequence[str]) -> str | None:
    """Version of the first of these distributions that is installed here, None when none is."""
    for name in distributions:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def check_versions(
    client: Client, libraries: Collection[str] = (), timeout_s: float = ANSWER_TIMEOUT_S
) -> tuple[str, ...]:
    """Compare the versions of this process with those of the scheduler and of the workers that are there now.

    `libraries` are those of the run's detector (`Detector.libraries`). One exchange with the cluster, however many
    workers it has. Returns a sentence for each package that bytes or messages depend on and that differs somewhere,
    none when all agree; and when a worker does not answer within `timeout_s` seconds, one that says so. Raises
    ConfigError when pyimgano_dask itself is another version somewhere or cannot be imported there, RunError when the
    cluster is lost meanwhile.
    """
    for_bytes = {**FOR_BYTES, **_of_detectors(libraries)}
    try:
        answers = client.sync(_ask, client, {**for_bytes, **FOR_MESSAGES}, timeout_s)
    except TimeoutError:
        return (
            f"not every worker answered within {timeout_s:g} s: the versions of the cluster are not compared "
            "with those here",
        )
    except OSError as error:
        raise RunError(
            f"the cluster was lost while its versions were compared ({error}); see that its scheduler is up, and run "
            "again"
        ) from error
    packages, own, own_of_scheduler = answers
    if faults := list(_foreign({SCHEDULER: own_of_scheduler, **own})):
        raise ConfigError("\n".join(faults))
    here = packages["client"]["packages"]
    workers = {address: answer["packages"] for address, answer in packages["workers"].items()}
    scheduler = {SCHEDULER: packages["scheduler"]["packages"]}
    return (
        *_differences(for_bytes, here, workers, "their bytes may differ"),
        *_differences(FOR_MESSAGES, here, {**scheduler, **workers}, "they may misunderstand each other"),
    )


async def _ask(
    client: Any, packages: Mapping[str, Sequence[str]], timeout_s: float
) -> tuple[Mapping[str, Any], Mapping[str, Any], Any]:
    """Versions of `packages`, as `Client.get_versions` gives them, and the version of pyimgano_dask that each worker
    and the scheduler import, or the error.

    The question names a function of the standard library, so that it is understood where this package is not.
    """
    distributions = sorted({name for names in packages.values() for name in names})
    answers: Any = await asyncio.wait_for(
        asyncio.gather(
            client.get_versions(packages=distributions),
            client.run(pkgutil.resolve_name, _OWN_VERSION, on_error="return"),
            client.run_on_scheduler(pkgutil.resolve_name, _OWN_VERSION),
            return_exceptions=True,
        ),
        timeout_s,
    )
    found, own, own_of_scheduler = answers
    for answer in (found, own):
        if isinstance(answer, BaseException):
            raise answer
    return found, own, own_of_scheduler


def _foreign(own: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each other version of pyimgano_dask, and for each reason why it cannot be imported."""
    remedy = f"install pyimgano_dask {__version__} there, and start the scheduler and the workers again"
    for found, places in _by_value(own).items():
        if found == __version__:
            continue
        if isinstance(own[places[0]], BaseException):
            yield f"--scheduler: {_named(places)} cannot import pyimgano_dask ({found}); {remedy}"
        else:
            verb = "has" if len(places) == 1 else "have"
            yield f"--scheduler: {_named(places)} {verb} pyimgano_dask {found}, and here it is {__version__}; {remedy}"


def _differences(
    names: Mapping[str, Sequence[str]],
    here: Mapping[str, str | None],
    there: Mapping[str, Mapping[str, str | None]],
    consequence: str,
) -> Iterator[str]:
    for name, distributions in names.items():
        ours = _version(name, distributions, here)
        theirs = {place: _version(name, distributions, versions) for place, versions in there.items()}
        others = {place: version or "not installed" for place, version in theirs.items() if version != ours}
        if ours is not None and others:
            told = ", ".join(f"{version} on {_named(places)}" for version, places in _by_value(others).items())
            yield f"{name} is {ours} here and {told}: {consequence}; install with the same constraints.txt everywhere"


def _version(name: str, distributions: Sequence[str], versions: Mapping[str, str | None]) -> str | None:
    found = next(filter(None, map(versions.get, distributions)), None)
    # 3.11.7.final.0: releases of one minor version understand each other.
    return ".".join(found.split(".")[:2]) if found and name == "python" else found


def _by_value(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """The places of each value, in the order in which they come."""
    places: dict[str, list[str]] = {}
    for place, value in values.items():
        places.setdefault(str(value), []).append(place)
    return places


def _named(places: Sequence[str]) -> str:
    """`the scheduler, worker tcp://… and 4 more`."""
    words = [place if place == SCHEDULER else f"worker {place}" for place in places]
    if len(words) > SHOWN_PLACES:
        words = [", ".join(words[:SHOWN_PLACES]), f"{len(words) - SHOWN_PLACES} more"]
    return " and ".join(words)
