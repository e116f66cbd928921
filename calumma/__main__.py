"""Run the command `calumma` by `python -m calumma`."""

import sys

from calumma.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
