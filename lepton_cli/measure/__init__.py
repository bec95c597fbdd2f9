"""Measurements: accuracy, latency, size, memory, and the statistics that make them comparable."""
