"""`python -m plumbline_operator`."""

import sys

from plumbline_operator.main import main

sys.exit(main())
