"""Locks on open files, which end with the process that holds them, however it ends."""

from __future__ import annotations

import sys
from typing import IO

if sys.platform == "win32":

    def lock(file: IO[bytes], *, shared: bool = False, wait: bool = True) -> bool:
        """Always True: nothing is locked there, but an open file cannot be removed either."""
        return True

else:
    import fcntl

    def lock(file: IO[bytes], *, shared: bool = False, wait: bool = True) -> bool:
        """Until the file is closed; False if somebody else holds it and `wait` is not asked for.

        On a filesystem without locks it is True: what is written there takes its name only when it is whole.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True
