"""The file of a run, read line by line: apart from `d9d_tracker.reading`, which is to find the same."""

from pathlib import Path
from typing import Any

from d9d_tracker.provider.jsonl_format import read_record, whole_lines
from d9d_tracker.record import Record


def read_run(path: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """Return the fields of a run's first line, and its records, of each series and step the last one."""
    path = Path(path)
    run: dict[str, Any] | None = None
    records: dict[Any, Record] = {}
    for _, fields in whole_lines(path.read_bytes(), path):
        if run is None:
            run = {key: value for key, value in fields.items() if key != "type"}
        elif fields["type"] == "hparams":
            run["hparams"] |= fields["hparams"]
        elif fields["type"] != "end":
            record = read_record(fields)
            key = (fields["type"], record.name, record.step, tuple(sorted(record.context.items())))
            records[key] = record
    assert run is not None
    return run, list(records.values())
