"""The command line of `simulate.py`: flags, help pages, commands and error messages.

`simulate.py` calls `main`. The slow imports (torch, timm, Flower, Ray) are done inside the commands
that need them. So the help and the error messages appear at once.
"""

from fl_vitlora.command_line.program import main

__all__ = ["main"]
