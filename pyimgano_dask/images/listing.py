"""Which images a run is about: files, folders, globs, lists and fsspec URLs, streamed in a stable order."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.transfers import faults_are_oserrors, list_folder, open_filesystem, open_remote
from pyimgano_dask.urls import is_url

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_GLOB = re.compile(r"[*?\[]")

# One child of a folder: its name (the sort key), its path, and whether to go down into it.
_Child = tuple[str, str, bool]


@dataclass(frozen=True)
class FileKind:
    """What is looked for in folders: files of these suffixes, called by this noun."""

    noun: str
    suffixes: tuple[str, ...]

    def has_suffix(self, path: str) -> bool:
        """Whether the path ends like a file of this kind, in any case."""
        return os.path.splitext(path)[1].lower() in self.suffixes

    @property
    def suffixes_text(self) -> str:
        """The suffixes in words."""
        return ", ".join(suffix.removeprefix(".") for suffix in self.suffixes)


IMAGES = FileKind("image", IMAGE_SUFFIXES)


class InputList:
    """The inputs that a list of specs stands for, in a stable order, as often as it is iterated.

    A spec is a file of the kind that is listed (an image unless told), a folder (searched recursively, links to
    folders are not followed), a glob (`*`, `?`, `[...]`, and `**` for any depth), `@list.txt` (one path a line, taken
    as it is), or an fsspec URL of any of them. Specs keep their order, duplicates stay. A folder is listed in the
    order of `sorted(Path(folder).rglob("*"))`, by path parts: `a/b.png` comes before `a-b.png`. A glob is listed in
    the same order, and a file below a matched folder comes once.

    Only the specs, and the names in the folders on the way down to the current file, are in memory; the matches
    of a glob are held too. Paths come back as given: a relative one stays relative, looked up in `base_dir`.
    """

    def __init__(self, specs: Sequence[str], *, base_dir: str, kind: FileKind = IMAGES) -> None:
        self.specs = tuple(specs)
        self.base_dir = base_dir
        self.kind = kind
        self._seen: tuple[int, str] | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield every input. Raises ConfigError on reaching a spec that `check` would refuse."""
        for spec in self.specs:
            yield from _expand(spec, self.base_dir, self.kind)

    def count(self) -> int:
        """How many inputs there are: one streaming pass the first time. Raises ConfigError like `check`."""
        return self._look_once()[0]

    def digest(self) -> str:
        """SHA-256 of the paths in their order, in hexadecimal; settled in the same pass as `count`."""
        return self._look_once()[1]

    def check(self) -> None:
        """Raise one ConfigError that names every unusable spec; the pass also settles `count` and `digest`."""
        self._look_once()

    def _look_once(self) -> tuple[int, str]:
        if self._seen is None:
            self._seen = self._look()
        return self._seen

    def _look(self) -> tuple[int, str]:
        if not self.specs:
            raise ConfigError(
                "no input is given; name at least one image file, folder, glob, @list.txt or URL with --input"
            )
        count, digest = 0, hashlib.sha256()
        faults = []
        for spec in self.specs:
            try:
                for path in _expand(spec, self.base_dir, self.kind):
                    count += 1
                    digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("\n".join(faults))
        return count, digest.hexdigest()


def _expand(spec: str, base_dir: str, kind: FileKind) -> Iterator[str]:
    """Every path that one spec stands for; ConfigError when it is unusable or stands for nothing."""
    nothing = f"no {kind.noun} is found there; {kind.noun}s end in {kind.suffixes_text}"
    if spec.startswith("@"):
        paths = _list_entries(spec[1:], base_dir)
        nothing = "the list is empty; it needs one path a line"
    elif is_url(spec):
        paths = _expand_url(spec, kind)
    else:
        paths = _expand_local(spec, base_dir, kind)
    found = False
    with _fault_of(spec):
        for path in paths:
            found = True
            yield path
    if not found:
        raise _unusable(spec, nothing)


def _unusable(spec: str, reason: str) -> ConfigError:
    return ConfigError(f"input {spec!r}: {reason}")


@contextmanager
def _fault_of(spec: str) -> Iterator[None]:
    """Turn what a file system raises into a ConfigError that names the spec."""
    try:
        with faults_are_oserrors():
            yield
    except OSError as error:
        where = f" ({error.filename!r})" if error.filename is not None else ""
        raise _unusable(spec, f"it cannot be read{where}: {error.strerror or error}") from error
    except (ValueError, ImportError) as error:
        raise _unusable(spec, f"it cannot be read: {error}") from error


def _one_file(spec: str, path: str, kind: FileKind) -> Iterator[str]:
    """The spec itself, when the file `path` that it names has the right suffix."""
    if not kind.has_suffix(path):
        raise _unusable(
            spec,
            f"the suffix {os.path.splitext(path)[1]!r} is not that of an {kind.noun}; allowed are {kind.suffixes_text} "
            f"(write {'@' + spec!r} if the file is a list of paths)",
        )
    yield spec


def _list_entries(path: str, base_dir: str) -> Iterator[str]:
    """Lines of a list without their ending, blank ones left out; bytes outside UTF-8 become surrogates."""
    with (
        open_remote(path) if is_url(path) else open(os.path.join(base_dir, path), "rb") as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines,
    ):
        for line in lines:
            entry = line.removesuffix("\n").removesuffix("\r")
            if entry.strip():
                yield entry


def _walk(folder: str, children: Callable[[str], list[_Child]], kind: FileKind) -> Iterator[str]:
    """Files of a kind below `folder`, depth first, each folder sorted by name; `children` lists one folder."""
    pending = [iter(sorted(children(folder)))]
    while pending:
        for name, path, is_folder in pending[-1]:
            if is_folder:
                pending.append(iter(sorted(children(path))))
                break
            if kind.has_suffix(name):
                yield path
        else:
            pending.pop()


def _expand_local(spec: str, base_dir: str, kind: FileKind) -> Iterator[str]:
    full = os.path.join(base_dir, spec)
    if not spec:
        raise _unusable(spec, "the path is empty; write . for the current folder")
    if os.path.isdir(full):
        yield from _walk_local(spec, base_dir, kind)
    elif os.path.lexists(full):
        yield from _one_file(spec, spec, kind)
    elif _GLOB.search(spec):
        matches = glob.iglob(spec, root_dir=base_dir, recursive=True)
        yield from _expand_matches(
            matches,
            is_folder=lambda match: os.path.isdir(os.path.join(base_dir, match)),
            walk=lambda match: _walk_local(match, base_dir, kind),
            kind=kind,
        )
    else:
        raise _unusable(spec, f"no such file or folder (looked for {full!r})")


def _expand_matches(
    matches: Iterator[str], *, is_folder: Callable[[str], bool], walk: Callable[[str], Iterator[str]], kind: FileKind
) -> Iterator[str]:
    """Files of a kind among the matches of a glob and below the matched folders, each once, ordered by path parts."""
    walked: tuple[str, ...] | None = None
    for parts, match in sorted((Path(match).parts, match) for match in matches if match):
        if walked is not None and parts[: len(walked)] == walked:
            continue
        if is_folder(match):
            walked = parts
            yield from walk(match)
        elif kind.has_suffix(match):
            yield match


def _walk_local(folder: str, base_dir: str, kind: FileKind) -> Iterator[str]:
    def children(folder: str) -> list[_Child]:
        prefix = "" if folder == "." else folder if folder.endswith("/") else folder + "/"
        with os.scandir(os.path.join(base_dir, folder)) as entries:
            return [
                (entry.name, prefix + entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not (entry.is_symlink() and entry.is_dir())
            ]

    return _walk(str(Path(folder)), children, kind)


def _expand_url(spec: str, kind: FileKind) -> Iterator[str]:
    fs, root = open_filesystem(spec)
    # A chained URL (`zip://inner::s3://outer.zip`) needs its tail again in every path that comes out of it.
    tail = spec[spec.index("::") :] if "::" in spec else ""
    try:
        at_root = fs.info(root)["type"]
    except FileNotFoundError:
        at_root = None
    # To a web server a folder is a file like any other, and asking whether an image is a folder would download it.
    if at_root == "file" and (kind.has_suffix(root) or not fs.isdir(root)):
        yield from _one_file(spec, root, kind)
        return
    if at_root is not None:
        found = _walk_remote(fs, root, kind)
    elif _GLOB.search(root):
        found = _expand_matches(
            iter(fs.glob(root)), is_folder=fs.isdir, walk=lambda match: _walk_remote(fs, match, kind), kind=kind
        )
    else:
        raise _unusable(spec, "no such file or folder")
    for path in found:
        yield fs.unstrip_protocol(path) + tail


def _walk_remote(fs: Any, folder: str, kind: FileKind) -> Iterator[str]:
    def children(folder: str) -> list[_Child]:
        return [
            (item["name"].rstrip("/").rpartition("/")[2], item["name"], item["type"] == "directory")
            for item in list_folder(fs, folder)
        ]

    return _walk(folder, children, kind)
