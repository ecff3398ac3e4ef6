"""`python -m server`."""

import sys

from server.server import main

sys.exit(main())
