"""The forms of data sets: class folders, file lists, tar shards."""
