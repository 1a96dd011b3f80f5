"""`python -m understudy.cluster.cli`, the same as `understudy`."""

from understudy.cluster.cli import main

main()
