"""The order of things: what is checked, run, measured, judged and written, one file a command."""
