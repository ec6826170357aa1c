"""The command line: its flags, its help, its commands, and how mistakes are answered.

`simulate.py` calls `main`. Everything heavy (torch, timm, Flower, Ray) is imported inside the
commands that need it, so that help and mistakes are answered at once.
"""

from fl_vitlora.command_line.program import main

__all__ = ["main"]
