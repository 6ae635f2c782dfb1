"""Which images a run is about: files, folders, globs, lists and fsspec URLs, streamed in a stable order."""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.urls import is_url

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

_SUFFIXES_TEXT = "png, jpg, jpeg, bmp, tif, tiff, webp"
_GLOB = re.compile(r"[*?\[]")

# One child of a folder: its name (the sort key), its path, and whether to go down into it.
_Child = tuple[str, str, bool]


class InputList:
    """The inputs that a list of specs stands for, in a stable order, as often as it is iterated.

    A spec is an image file, a folder (searched recursively, links to folders are not followed), a glob (`*`,
    `?`, `[...]`, and `**` for any depth), `@list.txt` (one path a line, taken as it is), or an fsspec URL of any
    of them. Specs keep their order, duplicates stay. A folder is listed in the order of
    `sorted(Path(folder).rglob("*"))`, by path parts: `a/b.png` comes before `a-b.png`. A glob is listed in the
    same order, and a file below a matched folder comes once.

    Only the specs, and the names in the folders on the way down to the current file, are in memory; the matches
    of a glob are held too. Paths come back as given: a relative one stays relative, looked up in `base_dir`.
    """

    def __init__(self, specs: Sequence[str], *, base_dir: str) -> None:
        self.specs = tuple(specs)
        self.base_dir = base_dir
        self._count: int | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield every input. Raises ConfigError on reaching a spec that `check` would refuse."""
        for spec in self.specs:
            yield from _expand(spec, self.base_dir)

    def count(self) -> int:
        """How many inputs there are: one streaming pass the first time. Raises ConfigError like iterating."""
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def check(self) -> None:
        """Raise one ConfigError that names every unusable spec; the pass also settles `count`."""
        if not self.specs:
            raise ConfigError(
                "no input is given; name at least one image file, folder, glob, @list.txt or URL with --input"
            )
        count = 0
        faults = []
        for spec in self.specs:
            try:
                count += sum(1 for _ in _expand(spec, self.base_dir))
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("\n".join(faults))
        self._count = count


def _expand(spec: str, base_dir: str) -> Iterator[str]:
    """Every path that one spec stands for; ConfigError when it is unusable or stands for nothing."""
    nothing = f"no image is found there; images end in {_SUFFIXES_TEXT}"
    if spec.startswith("@"):
        paths = _list_entries(spec[1:], base_dir)
        nothing = "the list is empty; it needs one path a line"
    elif is_url(spec):
        paths = _expand_url(spec)
    else:
        paths = _expand_local(spec, base_dir)
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
        yield
    except OSError as error:
        where = f" ({error.filename!r})" if error.filename is not None else ""
        raise _unusable(spec, f"it cannot be read{where}: {error.strerror or error}") from error
    except (ValueError, ImportError) as error:
        raise _unusable(spec, f"it cannot be read: {error}") from error


def _has_image_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _one_file(spec: str, path: str) -> Iterator[str]:
    """The spec itself, when the file `path` that it names has the suffix of an image."""
    if not _has_image_suffix(path):
        raise _unusable(
            spec,
            f"the suffix {os.path.splitext(path)[1]!r} is not that of an image; allowed are {_SUFFIXES_TEXT} "
            f"(write {'@' + spec!r} if the file is a list of paths)",
        )
    yield spec


def _list_entries(path: str, base_dir: str) -> Iterator[str]:
    """Lines of a list without their ending, blank ones left out; bytes outside UTF-8 become surrogates."""
    with (
        fsspec.open(path, "rb") if is_url(path) else open(os.path.join(base_dir, path), "rb") as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines,
    ):
        for line in lines:
            entry = line.removesuffix("\n").removesuffix("\r")
            if entry.strip():
                yield entry


def _walk(folder: str, children: Callable[[str], list[_Child]]) -> Iterator[str]:
    """Images below `folder`, depth first, each folder sorted by name; `children` lists one folder."""
    pending = [iter(sorted(children(folder)))]
    while pending:
        for name, path, is_folder in pending[-1]:
            if is_folder:
                pending.append(iter(sorted(children(path))))
                break
            if _has_image_suffix(name):
                yield path
        else:
            pending.pop()


def _expand_local(spec: str, base_dir: str) -> Iterator[str]:
    full = os.path.join(base_dir, spec)
    if not spec:
        raise _unusable(spec, "the path is empty; write . for the current folder")
    if os.path.isdir(full):
        yield from _walk_local(spec, base_dir)
    elif os.path.lexists(full):
        yield from _one_file(spec, spec)
    elif _GLOB.search(spec):
        matches = glob.iglob(spec, root_dir=base_dir, recursive=True)
        yield from _expand_matches(
            matches,
            is_folder=lambda match: os.path.isdir(os.path.join(base_dir, match)),
            walk=lambda match: _walk_local(match, base_dir),
        )
    else:
        raise _unusable(spec, f"no such file or folder (looked for {full!r})")


def _expand_matches(
    matches: Iterator[str], *, is_folder: Callable[[str], bool], walk: Callable[[str], Iterator[str]]
) -> Iterator[str]:
    """Images among the matches of a glob and below the matched folders, each once, ordered by path parts."""
    walked: tuple[str, ...] | None = None
    for parts, match in sorted((Path(match).parts, match) for match in matches if match):
        if walked is not None and parts[: len(walked)] == walked:
            continue
        if is_folder(match):
            walked = parts
            yield from walk(match)
        elif _has_image_suffix(match):
            yield match


def _walk_local(folder: str, base_dir: str) -> Iterator[str]:
    def children(folder: str) -> list[_Child]:
        prefix = "" if folder == "." else folder if folder.endswith("/") else folder + "/"
        with os.scandir(os.path.join(base_dir, folder)) as entries:
            return [
                (entry.name, prefix + entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not (entry.is_symlink() and entry.is_dir())
            ]

    return _walk(str(Path(folder)), children)


def _expand_url(spec: str) -> Iterator[str]:
    fs, root = fsspec.core.url_to_fs(spec)
    # A chained URL (`zip://inner::s3://outer.zip`) needs its tail again in every path that comes out of it.
    tail = spec[spec.index("::") :] if "::" in spec else ""
    # Files first: asking a web server whether an image is a folder would download it.
    if (_has_image_suffix(root) and fs.isfile(root)) or (not fs.isdir(root) and fs.exists(root)):
        yield from _one_file(spec, root)
        return
    if fs.isdir(root):
        found = _walk_remote(fs, root)
    elif _GLOB.search(root):
        found = _expand_matches(iter(fs.glob(root)), is_folder=fs.isdir, walk=lambda match: _walk_remote(fs, match))
    else:
        raise _unusable(spec, "no such file or folder")
    for path in found:
        yield fs.unstrip_protocol(path) + tail


def _walk_remote(fs: Any, folder: str) -> Iterator[str]:
    def children(folder: str) -> list[_Child]:
        # Object stores may list a folder's own placeholder among its children.
        return [
            (item["name"].rstrip("/").rpartition("/")[2], item["name"], item["type"] == "directory")
            for item in fs.ls(folder, detail=True)
            if item["name"].rstrip("/") != folder.rstrip("/")
        ]

    return _walk(folder, children)
