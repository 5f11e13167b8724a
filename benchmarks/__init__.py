"""The benchmarks: gpubp and its peers in turn (``gpubp bench``), and the parts of gpubp alone (pytest-benchmark)."""
