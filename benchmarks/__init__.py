"""What this project measures of itself."""
