"""Knobs of a run: what goes in, what comes out, and how the work is scheduled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Self

from pydantic import field_validator, model_validator

from pyimgano_dask.settings.defects import DefectSettings
from pyimgano_dask.settings.knob import Block, knob
from pyimgano_dask.settings.model import ModelSettings, TrainingSettings
from pyimgano_dask.settings.preprocessing import PreprocessingSettings
from pyimgano_dask.settings.tiling import TilingSettings

DEFAULT_BATCH_SIZE = 32
OVERLAY_SCALES = ("image", "run")
LOCAL_SCHEDULERS = ("auto", "threads", "sync", "processes", "local-cluster")
WITHOUT_REPORT = ("auto", "threads", "sync", "processes")


class TlsFiles(NamedTuple):
    """Paths of PEM files: the authority's certificate, one's own certificate, and its key."""

    ca: str
    cert: str
    key: str


class InputSettings(Block):
    """The images to inspect."""

    input: tuple[str, ...] = knob(
        (),
        "Image file, folder (scanned recursively), glob, @list.txt (one path a line) or fsspec URL; repeatable.",
        flag="--input",
        metavar="PATH",
    )
    max_image_pixels: int = knob(
        2**28,
        "Refuse images of more pixels (a guard against decompression bombs); they become error records.",
        flag="--max-image-pixels",
        metavar="N",
        ge=1,
        le=2**40,
    )


class AdaptationSettings(Block):
    """How anomaly maps are made of an image, and what happens to them before defects are looked for."""

    save_maps: bool = knob(False, "Put the anomaly map's shape (and path) into each record.", flag="--include-maps")
    tiling: TilingSettings = TilingSettings()
    postprocess: dict[str, Any] | None = knob(None, "Map normalisation; not available in this version.")

    @field_validator("postprocess")
    @classmethod
    def _postprocess_is_off(cls, postprocess: dict[str, Any] | None) -> dict[str, Any] | None:
        if postprocess:
            raise ValueError("map postprocessing is not available in this version; remove the block or set it to null")
        return postprocess


class OutputSettings(Block):
    """Where results go."""

    save_jsonl: str | None = knob(
        None, "Write the records to this file (default: standard output).", flag="--save-jsonl", metavar="FILE"
    )
    save_maps: str | None = knob(
        None,
        "Save anomaly maps as float32 .npy files in this folder, or in one zarr store when its name ends in .zarr. "
        "Implies --include-maps.",
        flag="--save-maps",
        metavar="DIR",
    )
    save_masks: str | None = knob(
        None, "Save defect masks in this folder. Needs --defects.", flag="--save-masks", metavar="DIR"
    )
    save_overlays: str | None = knob(
        None,
        "Save overlays in this folder: image, heatmap, mask, and the box and score of each region.",
        flag="--save-overlays",
        metavar="DIR",
    )
    overlay_format: Literal["png", "jpg"] = knob("png", "File format of saved overlays.", flag="--overlay-format")
    overlay_scale: str = knob(
        "image",
        "Map values that the heatmap's colours span: image (from the least to the greatest of each map), run (of all "
        "maps, which are kept on disk until all are scored), or two numbers such as 0,30.",
        flag="--overlay-scale",
        metavar="image|run|MIN,MAX",
    )
    include_anomaly_map_values: bool = knob(
        False,
        "Put every value of the anomaly map into its record (very large). Needs --include-maps.",
        flag="--include-anomaly-map-values",
    )
    profile: bool = knob(
        False, "Print the seconds and the memory of each stage to standard error after the run.", flag="--profile"
    )
    profile_json: str | None = knob(
        None, "Write the same as JSON to this file, when the run ends well.", flag="--profile-json", metavar="FILE"
    )

    @property
    def fixed_overlay_scale(self) -> tuple[float, float] | None:
        """The numbers of `overlay_scale`, None when it is a word."""
        return None if self.overlay_scale in OVERLAY_SCALES else _two_numbers(self.overlay_scale)

    @field_validator("overlay_scale")
    @classmethod
    def _scale_can_be_read(cls, scale: str) -> str:
        if scale not in OVERLAY_SCALES:
            _two_numbers(scale)
        return scale


def _two_numbers(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    try:
        numbers = float(low), float(high)
    except ValueError:
        numbers = math.nan, math.nan
    if not (all(map(math.isfinite, numbers)) and numbers[0] < numbers[1]):
        raise ValueError(f"{text!r} is not image, run, or two finite numbers MIN,MAX of which the second is greater")
    return numbers


class StoredMapSettings(Block):
    """Anomaly maps that are there already: what `pyimgano-rescore` starts from."""

    from_run: str | None = knob(
        None,
        "Run folder (--run-dir) of a run with --save-maps: its maps, images, scores and defect settings.",
        flag="--from-run",
        metavar="DIR",
    )
    maps: str | None = knob(
        None,
        "Anomaly maps: a folder or glob of float32 .npy files, @list.txt, or a zarr store written by --save-maps.",
        flag="--maps",
        metavar="PATH",
    )


class DataflowSettings(Block):
    """How the work is cut up and where it runs.

    Of these only `batch_size` changes a byte (it is the shard size of zarr stores, and how many inputs are lost with a
    chunk that kills its workers), and `amp` where a detector runs on CUDA.
    """

    scheduler: str = knob(
        "auto",
        "auto, threads, sync, processes, local-cluster, the address of a scheduler (tcp://host:port) or a "
        "scheduler.json file. auto takes threads for short lists and up to 4 cores, else a local cluster.",
        flag="--scheduler",
        metavar="SCHEDULER",
    )
    tls_ca: str | None = knob(
        None,
        "Certificate of the authority (PEM) that signed the certificates of a cluster with TLS. With --tls-cert and "
        "--tls-key; without the three, Dask's own configuration holds.",
        flag="--tls-ca",
        metavar="FILE",
    )
    tls_cert: str | None = knob(
        None, "Certificate (PEM) to show to a cluster with TLS.", flag="--tls-cert", metavar="FILE"
    )
    tls_key: str | None = knob(
        None, "Private key (PEM, without a passphrase) of --tls-cert.", flag="--tls-key", metavar="FILE"
    )
    performance_report: str | None = knob(
        None,
        "Write Dask's performance report of the run to this .html file: task stream, profile, bandwidth. Needs a "
        "cluster (local-cluster will do) and the extra [report].",
        flag="--performance-report",
        metavar="FILE",
    )
    workers: int | None = knob(
        None,
        "Threads or processes to use (default: one a core, or one for every --threads-per-task cores).",
        flag="--workers",
        metavar="N",
        ge=1,
    )
    threads_per_task: int = knob(
        1,
        "Threads that OpenCV, BLAS and torch use inside a task, and to train a network; for detectors that gain more "
        "from them than from further workers. Changes no result of detectors without networks, and the last digits of "
        "those with.",
        flag="--threads-per-task",
        metavar="N",
        ge=1,
        le=1024,
    )
    batch_size: int = knob(
        0, f"Inputs a task works on; 0 takes {DEFAULT_BATCH_SIZE}.", flag="--batch-size", metavar="N", ge=0, le=10**6
    )
    amp: bool = knob(
        False,
        "Run detectors in torch's inference mode, and with automatic mixed precision on CUDA; where torch or CUDA is "
        "missing, warn and go on without.",
        flag="--amp",
    )
    run_dir: str | None = knob(
        None,
        "Folder for the shards of this run, its plan and its fitted detector; on a cluster every worker must reach it "
        "(default: a temporary folder beside --save-jsonl).",
        flag="--run-dir",
        metavar="DIR",
        min_length=1,
    )
    resume: bool | None = knob(
        None,
        "Go on with the unfinished run in --run-dir, if there is one; --no-resume starts anew (default: start, but not "
        "over an unfinished run).",
        flag="--resume",
    )
    retries: int = knob(
        2,
        "How often a chunk is tried again whose task failed or whose worker died, before its inputs become error "
        "records.",
        flag="--retries",
        metavar="N",
        ge=0,
        le=100,
    )
    max_errors: int = knob(
        0, "Stop the run at so many error records; 0 never stops it.", flag="--max-errors", metavar="N", ge=0
    )
    gpu_resource: str | None = knob(
        None,
        "On a cluster: infer on workers started with this resource (`dask worker --resources GPU=1`), and do the rest "
        "on the others.",
        flag="--gpu-resource",
        metavar="NAME",
        pattern=r"^[\w.-]+$",
    )
    keep_parts: bool = knob(False, "Keep the JSONL shards after they are merged.", flag="--keep-parts")
    progress: bool | None = knob(
        None, "Show a progress bar (default: only when standard error is a terminal).", flag="--progress"
    )

    @property
    def chunk_size(self) -> int:
        """Inputs a chunk holds."""
        return self.batch_size or DEFAULT_BATCH_SIZE

    @property
    def tls(self) -> TlsFiles | None:
        """The files of the TLS flags, None where they are not given."""
        if self.tls_ca is None or self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_ca, self.tls_cert, self.tls_key)

    def faults(self) -> Iterator[str]:
        """What does not fit together, one sentence each."""
        files = {"--tls-ca": self.tls_ca, "--tls-cert": self.tls_cert, "--tls-key": self.tls_key}
        missing = [flag for flag, path in files.items() if path is None]
        given = [flag for flag in files if flag not in missing]
        if given and missing:
            yield f"{', '.join(given)} without {', '.join(missing)}: TLS takes all three files"
        if given and self.scheduler in LOCAL_SCHEDULERS:
            yield (
                f"{', '.join(given)} with --scheduler {self.scheduler}: TLS is for a cluster of your own; give the "
                "scheduler's address (tls://host:port) or file, or leave the files out"
            )
        if self.performance_report is not None and self.scheduler in WITHOUT_REPORT:
            yield (
                f"--performance-report with --scheduler {self.scheduler}: Dask reports on clusters only; give "
                "--scheduler local-cluster, a scheduler's address or its file"
            )
        if self.resume and self.run_dir is None:
            yield "--resume needs --run-dir (the folder of the run to go on with)"
        if self.gpu_resource is not None and self.scheduler in LOCAL_SCHEDULERS:
            yield "--gpu-resource needs --scheduler with the address or file of a cluster"

    @field_validator("performance_report")
    @classmethod
    def _report_is_a_page(cls, path: str | None) -> str | None:
        if path is not None and not path.lower().endswith(".html"):
            raise ValueError(f"{path!r} is no name for a web page; let it end in .html")
        return path

    @field_validator("scheduler")
    @classmethod
    def _scheduler_is_known(cls, scheduler: str) -> str:
        if scheduler in LOCAL_SCHEDULERS or "://" in scheduler or scheduler.endswith(".json"):
            return scheduler
        raise ValueError(
            f"unknown scheduler {scheduler!r}; take one of {', '.join(LOCAL_SCHEDULERS)}, an address such as "
            "tcp://127.0.0.1:8786, or the path of a scheduler .json file"
        )


class CheckpointSettings(Block):
    """The fitted detector an infer config belongs to; `model.checkpoint_path` once it is found."""

    path: str | None = knob(
        None, "Saved state of the detector, looked up beside the config, in its parent folder, then in from_run."
    )
    sha256: str | None = knob(None, "Checksum the file must have, in hexadecimal.")


class InferSettings(Block):
    """Everything `pyimgano-infer` can be told. An infer config is this tree, or a part of it, as JSON."""

    schema_version: int = knob(1, "Version of this file format.", ge=1, le=1)
    category: str | None = knob(None, "Category this config is for.")
    per_category: dict[str, Any] | None = knob(
        None, "By category: the threshold, threshold_provenance and checkpoint that replace the ones beside it."
    )
    from_run: str | None = knob(None, "Folder of the run this config was exported from.")
    environment: dict[str, Any] | None = knob(None, "Versions the config was made with, for people to read.")
    model: ModelSettings = ModelSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    training: TrainingSettings = TrainingSettings()
    inputs: InputSettings = InputSettings()
    stored: StoredMapSettings = StoredMapSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    defects: DefectSettings = DefectSettings()
    threshold: float | None = knob(None, "Score threshold: label 1 from this score on.")
    threshold_provenance: dict[str, Any] | None = knob(None, "Where the score threshold came from.")
    pixel_threshold_provenance: dict[str, Any] | None = knob(None, "Where the pixel threshold came from.")
    output: OutputSettings = OutputSettings()
    dataflow: DataflowSettings = DataflowSettings()

    @property
    def wants_maps(self) -> bool:
        """Whether records carry `anomaly_map`."""
        return self.adaptation.save_maps or self.output.save_maps is not None or self.defects.enabled

    @property
    def needs_maps(self) -> bool:
        """Whether the detector has to give maps at all (overlays need them even where records do not)."""
        return self.wants_maps or self.output.save_overlays is not None

    @model_validator(mode="after")
    def _knobs_fit_together(self) -> Self:
        faults = []
        if self.output.save_masks is not None and not self.defects.enabled:
            faults.append("--save-masks needs --defects (masks come from defect extraction)")
        if self.output.include_anomaly_map_values and not self.wants_maps:
            faults.append("--include-anomaly-map-values needs --include-maps")
        if self.training.calibration_quantile is not None and self.training.train_dir is None:
            faults.append("--calibration-quantile needs --train-dir (a folder of normal images to calibrate on)")
        if self.defects.image_space and not self.defects.enabled:
            faults.append("--defects-image-space needs --defects")
        faults += self.dataflow.faults()
        if faults:
            raise ValueError("; ".join(faults))
        return self
