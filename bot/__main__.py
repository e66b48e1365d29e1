"""`python -m bot`: the same as `thumbtune`."""

from bot.cli.main import main

main()
