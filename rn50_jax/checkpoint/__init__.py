"""Checkpoints on disk: written, verified, chosen, read. The only room that imports orbax."""
