"""Runs a command in the terminal's foreground, in a process group of its own, and ends with its status.

make takes a Ctrl-C as its own failure, whatever its command makes of it; so for `make up`, which ends well by
Ctrl-C, the terminal must send that to the command alone. Without a terminal there is nothing to arrange.
"""

import os
import signal
import subprocess
import sys


def main(command: list[str]) -> int:
    """The command's exit status; a signal counts as a shell counts it."""
    if not os.isatty(0):
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point.
    # Giving the terminal back is a write from the background, which would otherwise stop us.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    ours = os.tcgetpgrp(0)
    child = subprocess.Popen(command, process_group=0)
    os.tcsetpgrp(0, child.pid)
    try:
        status = child.wait()
    finally:
        os.tcsetpgrp(0, ours)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
