"""Files that are written completely or not at all, and files that detect their own damage."""
