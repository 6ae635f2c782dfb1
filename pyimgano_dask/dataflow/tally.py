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
    """Count records, one after the other."""
    total = Tally()
    for record in records:
        total += _tally_one(record)
    return total


def _tally_one(record: Mapping[str, Any]) -> Tally:
    if "error" in record:
        return Tally(1, 1, errors=((record["index"], record["input"], record["error"]["message"]),))
    defects = record.get("defects", {})
    n_regions = len(defects.get("regions", ()))
    suppressed = defects.get("suppressed")
    return Tally(
        n_inputs=1,
        n_anomalous=int(record.get("label") == 1),
        n_defective=int(n_regions > 0),
        n_regions=n_regions,
        waterfall=() if suppressed is None else waterfall_of_record(suppressed),
    )
