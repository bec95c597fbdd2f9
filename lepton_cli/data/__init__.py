"""Calibration and evaluation data: sources (`npz`, image folders, tables) and declarative preprocessing."""
