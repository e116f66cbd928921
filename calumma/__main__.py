"""`python -m calumma` is the command `calumma`."""

import sys

from calumma.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
