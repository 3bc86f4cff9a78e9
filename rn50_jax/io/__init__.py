"""Files, JSON, lines, text and the terminal; knows nothing of training."""
