"""Files that are either whole or absent, and files that tell whether they were changed."""
