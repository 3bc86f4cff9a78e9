"""Other people's programs timed beside this package's step."""
