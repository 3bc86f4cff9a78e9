"""Weight files, under torch's names."""
