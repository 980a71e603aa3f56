"""Small text files between images and a training run: lists, class splits, evaluation pairs."""
