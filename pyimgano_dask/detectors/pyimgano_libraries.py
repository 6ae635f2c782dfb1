"""Which libraries the detectors of the package pyimgano compute with, told from names and tags without loading any."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from functools import cache

ALWAYS_USED = frozenset({"scikit-learn", "scipy"})

_TORCHVISION = frozenset({"torch", "torchvision"})

# The optional libraries that pyimgano computes with where a detector or a feature extractor has this name or tag, or
# an argument this value.
LIBRARIES: Mapping[str, frozenset[str]] = {
    "clip": frozenset({"clip", "open_clip_torch"}),
    "deep": _TORCHVISION,
    "faiss": frozenset({"faiss-cpu"}),
    "gabor_bank": frozenset({"scikit-image"}),
    "hog": frozenset({"scikit-image"}),
    "lbp": frozenset({"scikit-image"}),
    "one_class_cnn": _TORCHVISION | {"scikit-image"},
    "onnx": frozenset({"onnxruntime"}),
    "openclip": frozenset({"open_clip_torch"}),
    "phase_corr": frozenset({"scikit-image"}),
    "resnet18": _TORCHVISION,
    "ssim": frozenset({"scikit-image"}),
    "torch": frozenset({"torch"}),
    "torchscript": frozenset({"torch"}),
    "torchvision": _TORCHVISION,
    # Backbones that these take where their arguments name none.
    "vision_crossmad": _TORCHVISION,
    "vision_oddoneout": _TORCHVISION,
    "vision_patch_embedding_core_map": _TORCHVISION,
}

# Detectors whose arguments have a backbone by default, which says nothing where another detector names them.
_ON_BACKBONES = ("vision_embedding_core", "vision_student_teacher_lite")


def libraries_of(words: Collection[str]) -> frozenset[str]:
    """The distributions that pyimgano computes with, given the words that speak of a detector.

    These are its name and tags, the texts among its arguments, and the words of the parts that these name
    (`words_of_parts`). What is loaded in this process says nothing: a session that has torch for something else has the
    same answer.

    >>> sorted(libraries_of({"vision_ecod", "classical"}))
    ['scikit-learn', 'scipy']
    """
    return ALWAYS_USED.union(*(LIBRARIES[word] for word in words if word in LIBRARIES))


@cache
def words_of_parts() -> Mapping[str, frozenset[str]]:
    """What speaks of each feature extractor and detector of pyimgano, by its name: tags and the words of the name.

    Loads none of them.
    """
    importlib.import_module("pyimgano.features")
    importlib.import_module("pyimgano.models")
    extractors = importlib.import_module("pyimgano.features.registry").FEATURE_REGISTRY
    detectors = importlib.import_module("pyimgano.models.registry").MODEL_REGISTRY
    words = {
        name: frozenset(registry.info(name).tags) | set(name.split("_"))
        for registry in (extractors, detectors)
        for name in registry.available()
    }
    return {**words, **{name: words[name] | {"torchvision"} for name in _ON_BACKBONES if name in words}}
