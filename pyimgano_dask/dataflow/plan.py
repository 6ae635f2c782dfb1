"""The plan: how a list of inputs becomes chunks, and what makes two runs the same. Nothing is read or written here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from pyimgano_dask.settings.catalog import knobs
from pyimgano_dask.settings.run import InferSettings

Item = TypeVar("Item", covariant=True)

LONGEST_SHOWN = 200
# Where results go and how the work is scheduled, which changes no byte of them; and a second name of the device.
WITHOUT_EFFECT = (
    "model.trust_model_file",
    "model.model_kwargs.device",
    "output.save_jsonl",
    "output.profile",
    "output.profile_json",
)


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """Inputs `start`, `start + 1`, … of the list; the unit of work, of retries and of shards."""

    index: int
    start: int
    inputs: tuple[Item, ...]

    def rows(self) -> Iterator[tuple[int, Item]]:
        """Position in the whole list, and the input itself."""
        return enumerate(self.inputs, self.start)


def chunked(inputs: Iterable[Item], size: int) -> Iterator[Chunk[Item]]:
    """Cut a list into chunks of `size` inputs, lazily; the last one may be shorter.

    >>> [chunk.inputs for chunk in chunked("abc", 2)]
    [('a', 'b'), ('c',)]
    """
    source = iter(inputs)
    index = 0
    while taken := tuple(islice(source, size)):
        yield Chunk(index, index * size, taken)
        index += 1


@dataclass(frozen=True)
class RunPlan:
    """Everything that the bytes of a run depend on, as JSON values by name.

    Two runs of the same plan write the same files, so one may go on where the other stopped.
    """

    n_inputs: int
    chunk_size: int
    facts: Mapping[str, Any]

    @property
    def n_chunks(self) -> int:
        """How many chunks the inputs make."""
        return -(-self.n_inputs // self.chunk_size)

    def differences(self, facts: Mapping[str, Any]) -> Iterator[str]:
        """What is not as in `facts`, those of another plan: a line for each, with both values."""
        flags = {knob.key: knob.flag for knob in knobs() if knob.flag}
        for name in sorted(self.facts.keys() | facts.keys()):
            then, now = facts.get(name), self.facts.get(name)
            if then != now:
                shown_then, shown_now = shown_apart(repr(then), repr(now))
                yield f"{flags.get(name, name)}: {shown_then} then, {shown_now} now"


def make_plan(
    settings: InferSettings,
    inputs: Mapping[str, tuple[int, str]],
    base_dir: str,
    versions: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
) -> RunPlan:
    """The plan of a run with these settings.

    `inputs` are the lists it reads by name, each with its length and a digest; `--input` comes first. `versions` are
    those of the packages whose bytes end up in files, `more` whatever else the bytes depend on.
    """
    chunk_size = settings.dataflow.chunk_size
    facts: dict[str, Any] = {
        "dataflow.batch_size": chunk_size,
        "dataflow.amp": settings.dataflow.amp,
        "folder it runs in": base_dir,
    }
    for name, (count, digest) in inputs.items():
        facts |= {f"{name} (number)": count, f"{name} (sha256 of the list)": digest}
    facts |= {f"version of {name}": version for name, version in versions.items()}
    tree = settings.model_dump(mode="json", exclude={"dataflow"})
    facts |= {name: value for name, value in _flat(tree) if name not in WITHOUT_EFFECT}
    facts |= _flat(more or {})
    return RunPlan(next(iter(inputs.values()))[0], chunk_size, facts)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def shown_apart(one: str, other: str) -> tuple[str, str]:
    """Two different texts, each cut to `LONGEST_SHOWN` characters around the first place where they differ."""
    shorter = min(len(one), len(other))
    place = next((n for n in range(shorter) if one[n] != other[n]), shorter)
    return _cut(one, place), _cut(other, place)


def _cut(text: str, place: int) -> str:
    if len(text) <= LONGEST_SHOWN:
        return text
    start = max(0, min(place - LONGEST_SHOWN // 2, len(text) - LONGEST_SHOWN))
    end = start + LONGEST_SHOWN
    return f"{'…' * (start > 0)}{text[start:end]}{'…' * (end < len(text))}"
