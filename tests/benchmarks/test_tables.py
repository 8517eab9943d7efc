"""Tables that pages show, against the runs that they are made of."""

import comfy_host
import readme_table
import records

RESULTS = comfy_host.PACK / "benchmarks" / "results"


def test_the_readmes_table_is_made_of_the_runs():
    """A figure in the README that nobody measured, or that was measured anew and is still the old one there."""
    table = readme_table.table(records.read(RESULTS / "fidelity.csv"))
    assert table.count("\n") == len(readme_table.ROWS) + 2
    for page in readme_table.PAGES:
        assert table in page.read_text("utf-8"), f"run python benchmarks/readme_table.py for {page.name}"
