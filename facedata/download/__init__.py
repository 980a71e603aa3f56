"""From a name to checked files: the catalogue, transfer, checksums, archives."""
