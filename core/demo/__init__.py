"""The whole system on one machine: real scans or simulated ones, real Flower processes, one report."""
