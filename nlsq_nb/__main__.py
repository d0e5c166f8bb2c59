"""`python -m nlsq_nb` is the command `nlsq-nb`."""

from __future__ import annotations

from nlsq_nb.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
