"""The READMEs' table of figures against the runs it is made of."""

import comfy_host
import records

RESULTS = comfy_host.PACK / "benchmarks" / "results"


def test_it_is_made_of_the_runs(comfy):
    """A figure in the README that nobody measured, or that was measured anew and is still the old one there."""
    import readme_table  # the other methods that it knows import ComfyUI

    table = readme_table.table(records.read(RESULTS / "fidelity.csv"))
    assert table.count("\n") == len(readme_table.ROWS) + 2
    for page in readme_table.PAGES:
        assert table in page.read_text("utf-8"), f"run python benchmarks/run.py --parts tables for {page.name}"
