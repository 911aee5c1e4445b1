"""Benchmarks: `python -m benchmarks [NAME …]`; `SPWNET_DATA` names the folder of real images."""
