"""Reports as JSON that is easy to read."""

import json


def as_json(report: dict) -> str:
    """Strict JSON with one line per entry; an entry that is a list has one line per item.

    Raises ValueError for a NaN or an infinity, which JSON does not have.
    """
    dump = json.JSONEncoder(allow_nan=False).encode

    def value(entry):
        if not isinstance(entry, list):
            return dump(entry)
        return "[\n" + ",\n".join(f"    {dump(item)}" for item in entry) + "\n  ]"

    return "{\n" + ",\n".join(f"  {dump(name)}: {value(entry)}" for name, entry in report.items()) + "\n}"
