"""What some records say in numbers: counted by the task that writes them, and again where a resumed run reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyimgano_dask.defects import Waterfall, add_waterfalls, waterfall_of_record

SHOWN_ERRORS = 5

Record = dict[str, Any]


@dataclass(frozen=True)
class Tally:
    """Counts over some records.

    `n_anomalous` have label 1, `n_defective` have regions. `waterfall` is what each control dropped, where that is
    explained. `errors` are the first few in the order of the inputs: index, input, message.
    """

    n_inputs: int = 0
    n_errors: int = 0
    n_anomalous: int = 0
    n_defective: int = 0
    n_regions: int = 0
    waterfall: Waterfall = ()
    errors: tuple[tuple[int, str, str], ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.n_inputs + other.n_inputs,
            self.n_errors + other.n_errors,
            self.n_anomalous + other.n_anomalous,
            self.n_defective + other.n_defective,
            self.n_regions + other.n_regions,
            add_waterfalls(self.waterfall, other.waterfall),
            tuple(sorted((*self.errors, *other.errors))[:SHOWN_ERRORS]),
        )


def tally(records: Iterable[Mapping[str, Any]]) -> Tally:
    """Count records, which stand in the order of their inputs."""
    n_inputs = n_errors = n_anomalous = n_defective = n_regions = 0
    waterfall: Waterfall = ()
    errors: list[tuple[int, str, str]] = []
    for record in records:
        n_inputs += 1
        if "error" in record:
            n_errors += 1
            if n_errors <= SHOWN_ERRORS:
                errors.append((record["index"], record["input"], record["error"]["message"]))
            continue
        n_anomalous += record.get("label") == 1
        if "defects" in record:
            found = len(record["defects"]["regions"])
            n_regions += found
            n_defective += found > 0
            if "suppressed" in record["defects"]:
                waterfall = add_waterfalls(waterfall, waterfall_of_record(record["defects"]["suppressed"]))
    return Tally(n_inputs, n_errors, n_anomalous, n_defective, n_regions, waterfall, tuple(errors))
