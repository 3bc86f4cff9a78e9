"""What a run tells: to people, to files, to services."""
