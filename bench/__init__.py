"""Measurements as ratios to a named yardstick of the same run, and the harness they share with the end-to-end tests."""
