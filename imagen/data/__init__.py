"""Tar shards, embedding shards, the elastic order and per-sample randomness."""
