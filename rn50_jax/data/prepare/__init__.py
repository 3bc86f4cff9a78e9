"""Data sets written to disk: ImageNet, tar shards, digits."""
