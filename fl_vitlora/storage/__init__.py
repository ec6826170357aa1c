"""Files that are written completely or not at all, and files whose damage is detected."""
