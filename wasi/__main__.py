"""`python -m wasi` is the `wasi` command."""

import sys

from wasi.cli import main

sys.exit(main())
