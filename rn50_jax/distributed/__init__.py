"""Devices and processes, and what they say to each other."""
