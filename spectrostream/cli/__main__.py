"""`python -m spectrostream.cli`: the same as `spectrostream`."""

import sys

from spectrostream.cli import main

if __name__ == "__main__":
    sys.exit(main())
