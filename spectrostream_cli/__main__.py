"""`python -m spectrostream_cli`: the same as `spectrostream`."""

import sys

from spectrostream_cli import main

if __name__ == "__main__":
    sys.exit(main())
