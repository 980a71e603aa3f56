"""Feature sets for clustering: matrices, labels, nearest neighbours, and their checks."""
