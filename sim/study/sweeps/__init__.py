"""Sweeps: points, shards, backends, results, indices."""
