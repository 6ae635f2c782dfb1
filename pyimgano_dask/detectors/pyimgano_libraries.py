"""Which libraries the detectors of the package pyimgano compute with, told from names and tags without loading any."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from functools import cache

ALWAYS_USED = frozenset({"scikit-learn", "scipy"})

# The optional libraries that pyimgano computes with where a detector or a feature extractor has this name or tag, or
# an argument this value.
LIBRARIES: Mapping[str, frozenset[str]] = {
    "clip": frozenset({"clip", "open_clip_torch"}),
    "deep": frozenset({"torch", "torchvision"}),
    "faiss": frozenset({"faiss-cpu"}),
    "gabor_bank": frozenset({"scikit-image"}),
    "hog": frozenset({"scikit-image"}),
    "lbp": frozenset({"scikit-image"}),
    "one_class_cnn": frozenset({"scikit-image"}),
    "onnx": frozenset({"onnxruntime"}),
    "openclip": frozenset({"open_clip_torch"}),
    "phase_corr": frozenset({"scikit-image"}),
    "ssim": frozenset({"scikit-image"}),
    "torch": frozenset({"torch"}),
    "torchscript": frozenset({"torch"}),
    "torchvision": frozenset({"torch", "torchvision"}),
}


def libraries_of(words: Collection[str]) -> frozenset[str]:
    """The distributions that pyimgano computes with, given the words that speak of a detector.

    These are its name and tags, the texts among its arguments, and the tags of feature extractors that these name.
    What is loaded in this process says nothing: a session that has torch for something else has the same answer.

    >>> sorted(libraries_of({"vision_ecod", "classical"}))
    ['scikit-learn', 'scipy']
    """
    return ALWAYS_USED.union(*(LIBRARIES[word] for word in words if word in LIBRARIES))


@cache
def words_of_extractors() -> Mapping[str, frozenset[str]]:
    """The tags of each feature extractor of pyimgano, by its name; loads none of them."""
    importlib.import_module("pyimgano.features")
    registry = importlib.import_module("pyimgano.features.registry").FEATURE_REGISTRY
    return {name: frozenset(registry.info(name).tags) for name in registry.available()}
