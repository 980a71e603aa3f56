"""Pictures of datasets."""
