"""Nearest neighbours of the rows of a feature set: exact or approximate, found block by block, in four file formats."""
