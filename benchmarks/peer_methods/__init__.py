"""The detectors that `benchmarks/peers.py` compares: one file each, and what they share."""
