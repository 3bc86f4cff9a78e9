"""Where images and labels come from: class folders, file lists, tar shards."""
