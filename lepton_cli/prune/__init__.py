"""Pruning algorithms: coupling, importance, allocation, recovery. Steps call them."""
