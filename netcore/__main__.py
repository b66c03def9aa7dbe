"""`python -m netcore`: the command line."""

from __future__ import annotations

from netcore.cli import main

if __name__ == "__main__":
    main()
