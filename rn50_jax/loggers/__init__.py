"""The reports of a run: to people, to files, to services."""
