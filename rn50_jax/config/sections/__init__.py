"""The sections of the schema: a frozen class each, an option a field."""
