"""Deployments that the benchmarks call."""
