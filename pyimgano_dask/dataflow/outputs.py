"""Where results go: folders and stores made ready, what killed writers left removed, the merged records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from pyimgano_dask.dataflow.artifacts import is_zarr
from pyimgano_dask.errors import RunError
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.files import make_folder, open_sink, remove_leftovers, remove_leftovers_of, resolve


def prepare_outputs(settings: InferSettings, base_dir: str, *, anew: bool) -> None:
    """Make the output folders and the zarr stores: one explicit step, before any task.

    Where a run begins `anew` the stores lose the rows of earlier ones.
    """
    output = settings.output
    stores = _stores(settings)
    for folder in (output.save_maps, output.save_masks, output.save_overlays):
        if folder is not None and folder not in stores:
            make_folder(resolve(folder, base_dir))
    if stores:
        from pyimgano_dask.storage.zarr_store import create_store

        for store in stores:
            create_store(resolve(store, base_dir), anew=anew)


def remove_leftovers_of_outputs(settings: InferSettings, base_dir: str) -> None:
    """Remove what writers of an earlier session have left that were killed."""
    output = settings.output
    if output.save_jsonl is not None:
        remove_leftovers_of(resolve(output.save_jsonl, base_dir))
    stores = _stores(settings)
    for folder in (output.save_maps, output.save_masks, output.save_overlays):
        if folder is not None and folder not in stores:
            remove_leftovers(resolve(folder, base_dir))
    if stores:
        from pyimgano_dask.storage.zarr_store import remove_leftovers_of_store

        for store in stores:
            remove_leftovers_of_store(resolve(store, base_dir))


def _stores(settings: InferSettings) -> list[str]:
    """The zarr stores among the outputs."""
    output = settings.output
    stores = []
    if output.save_maps is not None and is_zarr(output.save_maps):
        stores.append(output.save_maps)
    if output.save_masks is not None and settings.defects.mask_format == "zarr":
        stores.append(output.save_masks)
    return stores


@contextmanager
def open_output(settings: InferSettings, base_dir: str, stdout: BinaryIO) -> Iterator[BinaryIO]:
    """Where merged records go: standard output, or a file that appears whole when the block ends well."""
    jsonl = settings.output.save_jsonl
    with ExitStack() as stack:
        with output_faults_in_words(settings):
            sink = stdout if jsonl is None else stack.enter_context(open_sink(resolve(jsonl, base_dir)))
        yield sink
        with output_faults_in_words(settings):
            stack.close()


@contextmanager
def output_faults_in_words(settings: InferSettings) -> Iterator[None]:
    """What goes wrong while merged records are written; a reader of standard output that has left stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        jsonl = settings.output.save_jsonl
        shown = "standard output" if jsonl is None else repr(jsonl)
        raise RunError(f"{shown} cannot be written: {error}; make room or access and run again") from error
