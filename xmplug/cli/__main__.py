"""`python -m xmplug.cli`."""

from . import main

main()
