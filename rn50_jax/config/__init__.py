"""The recipe as configuration: every key, its checks, and what follows from it."""
