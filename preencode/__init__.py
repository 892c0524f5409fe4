"""Stage 1: bring data in as tar shards, index them, encode their captions (Ray)."""
