"""The state of a run on the disk, from which it goes on to the same bits."""
