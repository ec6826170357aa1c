"""What the server may learn: secure sums, and noise for differential privacy."""
