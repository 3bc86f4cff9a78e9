"""Images: class folders, DALI pipelines, synthetic and built-in data. The only place that imports DALI."""
