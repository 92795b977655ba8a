"""What several benchmarks need: models and rows to measure with, and processes that take turns."""
