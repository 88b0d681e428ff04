"""Benchmarks that anyone can run: ``make bench``. Speeds are ratios to a reference in the same run; see README.md."""
