"""`python -m bytelm.pipelines.cli`, the same as the command `bytelm`."""

import sys

from bytelm.pipelines.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
