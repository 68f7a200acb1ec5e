"""Programs that measure. Run them from the repository: `python -m benchmarks.bench_serving`."""
