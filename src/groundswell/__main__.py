"""``python -m groundswell``. Engines start here too, past the command line, so that they start fast."""

import sys
import time


def main() -> int:
    """Run the command line; ``serve NAME`` goes to its engine without importing anything else."""
    started_s = time.monotonic()  # Before the imports: they are a good part of a start.
    from groundswell.engines.serve import ENGINES, run

    if len(sys.argv) > 2 and sys.argv[1] == "serve" and sys.argv[2] in ENGINES:
        return run(sys.argv[2], sys.argv[3:])
    from groundswell.cli import main as command_line

    return command_line(started_s)


if __name__ == "__main__":
    sys.exit(main())
