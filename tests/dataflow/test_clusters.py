"""Clusters with certificates: who has them gets in, everybody else is told why not, at once and in words."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as pem

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.run import TlsFiles as Given
from pyimgano_dask.synthesis import InspectionSet
from tests.cluster import DaskCluster, TlsFiles, make_tls, start_cluster
from tests.conftest import infer_command, rescore_command, run_python
from tests.dataflow.doubles import opened

FITTED_FLAGS = ("--model", "vision_pixel_mad_map", "--train-dir", "set/train/good")


@dataclass(frozen=True)
class Encrypted:
    """A cluster with certificates, those of another authority, and own ones of it that trust the cluster's."""

    cluster: DaskCluster
    files: TlsFiles
    of_others: TlsFiles

    @property
    def half_trusted(self) -> TlsFiles:
        return TlsFiles(self.files.ca, self.of_others.cert, self.of_others.key)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("encrypted")
    files = make_tls(folder / "tls")
    with start_cluster(folder / "cluster", 1, tls=files) as cluster:
        yield Encrypted(cluster, files, make_tls(folder / "others"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, parts: InspectionSet) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "set").symlink_to(parts.root)
    return folder


def inspect(place: Path, *flags: object) -> bytes:
    done = infer_command(*FITTED_FLAGS, "--input", "set/test/good", *flags, cwd=place)
    assert done.rc == 0, done.stderr
    return done.stdout.encode()


@pytest.mark.cluster
@pytest.mark.parametrize("by", ["address", "file"])
def test_a_cluster_with_certificates_gives_the_same_bytes(encrypted: Encrypted, place: Path, by: str) -> None:
    cluster = encrypted.cluster
    scheduler = cluster.address if by == "address" else cluster.scheduler_file
    records = inspect(place, "--scheduler", scheduler, *encrypted.files.flags())
    assert records == inspect(place, "--scheduler", "sync")
    assert len(records.splitlines()) == 8


@pytest.mark.cluster
def test_stored_maps_are_scored_anew_there_too(encrypted: Encrypted, place: Path) -> None:
    inspect(place, "--save-maps", "maps", "--save-jsonl", "first.jsonl")
    rescore = ("--maps", "maps", "--defects", "--pixel-threshold", "3")
    report = ("--performance-report", "rescored.html")
    there = rescore_command(
        *(*rescore, "--scheduler", encrypted.cluster.address, *encrypted.files.flags(), *report), cwd=place
    )
    assert there.rc == 0, there.stderr
    assert there.stdout == rescore_command(*rescore, cwd=place).stdout
    assert "_attempt" in (place / "rescored.html").read_text()


@pytest.mark.cluster
def test_without_flags_the_configuration_of_dask_holds(encrypted: Encrypted, place: Path) -> None:
    files = encrypted.files
    done = run_python(
        *("-m", "pyimgano_dask.cli.infer", *FITTED_FLAGS, "--input", "set/test/good"),
        *("--scheduler", encrypted.cluster.address),
        cwd=place,
        env={
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(files.ca),
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": str(files.cert),
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": str(files.key),
        },
    )
    assert done.rc == 0, done.stderr
    assert done.stdout.encode() == inspect(place, "--scheduler", "sync")


STRANGERS = {
    "plain client": r"--scheduler: .*takes encrypted connections only; give --tls-ca, --tls-cert and --tls-key",
    "plain client, plain address": r"--scheduler: .*closed the connection.*encrypted connections only.*tls://",
    "authority of others": r"--tls-ca: the certificate of the scheduler at .* is not one of this authority",
    "certificate of others": r"--tls-cert: the scheduler at .* refuses this certificate",
    "plain scheduler": r"--scheduler: the scheduler at .* takes no encrypted connections.*leave them out",
    "plain scheduler, file": r"--scheduler: .*scheduler.json' takes no encrypted connections.*tcp://127",
    "plain scheduler, encrypted address": r"--scheduler: .* takes no encrypted connections.*tcp:// address without",
}


def stranger(name: str, encrypted: Encrypted, plain: DaskCluster) -> tuple[str, TlsFiles | None]:
    """A scheduler, and the files of a client that does not fit."""
    address = encrypted.cluster.address
    strangers = {
        "plain client": (address, None),
        "plain client, plain address": (address.replace("tls://", "tcp://"), None),
        "authority of others": (address, encrypted.of_others),
        "certificate of others": (address, encrypted.half_trusted),
        "plain scheduler": (plain.address, encrypted.files),
        "plain scheduler, file": (str(plain.scheduler_file), encrypted.files),
        "plain scheduler, encrypted address": (plain.address.replace("tcp://", "tls://"), encrypted.files),
    }
    return strangers[name]


@pytest.mark.cluster
@pytest.mark.parametrize("name", STRANGERS)
def test_who_does_not_fit_is_told(encrypted: Encrypted, dask_cluster: DaskCluster, name: str) -> None:
    scheduler, files = stranger(name, encrypted, dask_cluster)
    with pytest.raises(ConfigError, match=STRANGERS[name]), opened(scheduler, **flow(given(files))):
        pass
    # A Dask client that failed in a way it does not expect holds its process here, and then complains.
    gc.collect()


@pytest.mark.cluster
def test_a_command_that_does_not_fit_ends_before_it_writes(encrypted: Encrypted, place: Path) -> None:
    before = sorted(place.iterdir())
    done = infer_command(
        *(*FITTED_FLAGS, "--input", "set/test/good", "--save-jsonl", "out/strange.jsonl"),
        *("--scheduler", encrypted.cluster.address, *encrypted.of_others.flags()),
        cwd=place,
    )
    assert (done.rc, done.stdout) == (2, "")
    assert done.stderr.startswith("pyimgano-infer: error: --tls-ca: ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(place.iterdir()) == before


def flow(files: Given | None) -> dict[str, str]:
    """The settings of these files."""
    return {} if files is None else {"tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.key}


def given(files: TlsFiles | None) -> Given | None:
    return files and Given(str(files.ca), str(files.cert), str(files.key))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Given:
    files = given(make_tls(tmp_path_factory.mktemp("tls")))
    assert files is not None
    return files


def refused(tls: Given) -> str:
    """What is said to these files, before anybody is asked to let them in."""
    with pytest.raises(ConfigError) as caught, opened("tls://127.0.0.1:1", **flow(tls)):
        pass
    return str(caught.value)


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_a_file_that_is_not_there_is_named_with_its_flag(tls: Given, field: str) -> None:
    assert refused(tls._replace(**{field: "none.pem"})).startswith(f"--tls-{field}: there is no file 'none.pem'")


def test_files_that_are_something_else_are_told(tls: Given, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing of the kind")
    other = make_tls(tmp_path / "other")
    assert refused(tls._replace(ca=str(junk))).startswith(f"--tls-ca: {str(junk)!r} holds no certificate")
    for mismatch in (tls._replace(cert=str(junk)), tls._replace(key=str(junk)), tls._replace(key=str(other.key))):
        said = refused(mismatch)
        assert said.startswith("--tls-cert, --tls-key: ")
        assert repr(mismatch.cert) in said
        assert repr(mismatch.key) in said


def test_a_key_with_a_passphrase_is_told_instead_of_asked_for(tls: Given, tmp_path: Path) -> None:
    key = pem.load_pem_private_key(Path(tls.key).read_bytes(), None)
    locked = tmp_path / "locked.pem"
    form = (pem.Encoding.PEM, pem.PrivateFormat.PKCS8)
    locked.write_bytes(key.private_bytes(*form, pem.BestAvailableEncryption(b"secret")))
    assert "has a passphrase" in refused(tls._replace(key=str(locked)))
