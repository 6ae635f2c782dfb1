"""What `pyimgano-rescore` is told: built-in default < stored run < config < explicit flag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Knob
from pyimgano_dask.settings.commands import RESCORE, without_unused
from pyimgano_dask.settings.infer_config import InferConfigFile
from pyimgano_dask.settings.resolve import Resolved, merged, resolve, with_presets
from pyimgano_dask.settings.run_manifest import STORED_BLOCKS, RunManifest, read_run_manifest

PIXEL_PROVENANCE = "pixel_threshold_provenance"


@dataclass(frozen=True)
class Rescoring:
    """Validated settings of a re-scoring, and the run that it starts from, if any."""

    resolved: Resolved
    run: RunManifest | None


def resolve_rescoring(given: Mapping[Knob, Any], config: InferConfigFile | None = None) -> Rescoring:
    """Merge explicit values over a config over the settings of the stored run.

    Defect extraction is on. Raises ConfigError naming every faulty value, and for a run folder without a manifest.
    """
    payload = with_presets(without_unused(config.payload if config else {}, RESCORE))
    run_dir = next((value for knob, value in given.items() if knob.key == "stored.from_run"), None)
    if run_dir is None and isinstance(payload.get("stored"), Mapping):
        run_dir = payload["stored"].get("from_run")
    run = read_run_manifest(run_dir) if isinstance(run_dir, str) else None
    base = {key: run.settings[key] for key in STORED_BLOCKS if key in run.settings} if run else {}
    if _pixel_threshold(payload) is not None:
        base.pop(PIXEL_PROVENANCE, None)
        payload = {key: value for key, value in payload.items() if key != PIXEL_PROVENANCE}
    else:
        payload = _without_pixel_threshold(payload)
    tree = merged(base, payload)
    if isinstance(tree.get("defects", {}), Mapping):
        tree = merged(tree, {"defects": {"enabled": True}})
    file = replace(config, payload=tree) if config else InferConfigFile(run_dir or "", tree, ())
    resolved = resolve(given, file)
    if not resolved.settings.defects.enabled:
        raise ConfigError("--no-defects: extracting defects is all that re-scoring does; leave the flag out")
    stored = resolved.settings.stored
    if (stored.from_run is None) == (stored.maps is None):
        raise ConfigError(
            "give the stored maps exactly once: --from-run DIR (the --run-dir of a run with --save-maps) "
            "or --maps with a folder or glob of .npy files or a zarr store"
        )
    return Rescoring(resolved, run)


def _without_pixel_threshold(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, where a threshold of null stands for none, as in the config of a run without defects."""
    defects = payload.get("defects")
    if not isinstance(defects, Mapping):
        return payload
    kept = {key: value for key, value in defects.items() if key != "pixel_threshold"}
    return {key: value for key, value in {**payload, "defects": kept}.items() if key != PIXEL_PROVENANCE}


def _pixel_threshold(payload: Mapping[str, Any]) -> Any:
    defects = payload.get("defects")
    return defects.get("pixel_threshold") if isinstance(defects, Mapping) else None
