"""Looking at datasets: statistics, validation, comparison and pictures."""
