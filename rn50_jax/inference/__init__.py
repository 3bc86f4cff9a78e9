"""A trained model made ready to answer, the images it is asked about, and its answers."""
