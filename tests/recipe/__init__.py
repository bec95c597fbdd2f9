"""Tests of the recipe package."""
