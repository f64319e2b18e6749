"""`python -m loadtest.openloop --server HOST:PORT --workload '{rate: 50, seconds: 10}'`."""

import sys

from loadtest.openloop.generator import main

sys.exit(main())
