"""The step and all that it is made of."""
