"""A model on disk and in memory: loading, checking, saving."""
