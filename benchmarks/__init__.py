"""Benchmarks of this package against what people use now; see docs/benchmarks.md."""
