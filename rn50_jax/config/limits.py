"""How much of something there may be."""

MOST_CLASSES = 1_000_000  # a label beyond is a mistake, for which no names are made
