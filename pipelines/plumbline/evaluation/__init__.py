"""Evaluation: benchmarks, asking over HTTP, statistics, the gate and the report."""
