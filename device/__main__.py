"""`python -m device`."""

import sys

from device.device import main

sys.exit(main())
