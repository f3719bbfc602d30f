"""Side-by-side measurements of this package: see docs/benchmarks.md, and run ``python -m benchmarks`` in a checkout."""
