"""Defect-free references: which image each input is compared with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.images.listing import InputList
from pyimgano_dask.urls import file_name, is_url, join


@dataclass(frozen=True)
class References:
    """Where the reference of an input lies.

    `folder` holds images of the inputs' names; with `shared` set, that one image is everyone's. `nested` has the paths
    of images in subfolders, by name; those directly in the folder are found by their name, however many there are.
    """

    folder: str
    shared: str | None = None
    nested: Mapping[str, str] = field(default_factory=dict)

    def path_for(self, input_path: str) -> str:
        """Path of the reference an input has, whether it is there or not.

        >>> References("golden").path_for("line4/board_7.png")
        'golden/board_7.png'
        """
        if self.shared is not None:
            return self.shared
        name = file_name(input_path)
        return self.nested.get(name) or join(self.folder, name)

    def digest(self) -> str:
        """SHA-256 of which files references are taken from, in hexadecimal."""
        return hashlib.sha256(repr((self.folder, self.shared, sorted(self.nested.items()))).encode()).hexdigest()


def find_references(path: str, *, base_dir: str) -> References:
    """The references at `path`, a folder or one image; raises ConfigError when it has none or a name twice."""
    listed = InputList((path,), base_dir=base_dir)
    folder = path.rstrip("/") if is_url(path) else str(Path(path))
    nested: dict[str, str] = {}
    found = ""
    for found in listed:
        if found != path and os.path.dirname(found) != folder and nested.setdefault(file_name(found), found) != found:
            raise _not_unique(path, nested[file_name(found)], found)
    if nested:
        for found in listed:
            if nested.get(file_name(found), found) != found:
                raise _not_unique(path, nested[file_name(found)], found)
    return References(path, shared=found if found == path else None, nested=nested)


def _not_unique(path: str, one: str, other: str) -> ConfigError:
    return ConfigError(
        f"{path!r} holds two references of the same name, {one!r} and {other!r}; rename or remove one, or name the "
        "folder of one of them"
    )
