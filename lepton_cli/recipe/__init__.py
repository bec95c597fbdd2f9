"""The recipe: its typed schema, reading it with positions, defaults and overrides."""
