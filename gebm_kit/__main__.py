"""``python -m gebm_kit`` is the program ``gebm-kit``."""

from __future__ import annotations

import sys

from gebm_kit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
