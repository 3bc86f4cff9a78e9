"""A data set looked at before it is trained on."""
