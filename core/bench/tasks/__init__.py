"""The benchmarks: one file each, on the base class in base.py."""
