"""How fast models run beside each other: the one way that latency, guards, pruning times and energy are measured."""
