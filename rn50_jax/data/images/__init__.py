"""Image files: what they are, and how they become what DALI decodes."""
