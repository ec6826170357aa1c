"""The command line of `simulate.py`: flags, help pages, commands and error messages.

`simulate.py` calls `main`. The libraries torch, timm, Flower and Ray are slow to import. A command
imports slow libraries only if it needs them, so that the help and error messages appear at once.
"""

from fl_vitlora.command_line.program import main

__all__ = ["main"]
