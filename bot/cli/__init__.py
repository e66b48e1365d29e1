"""The `thumbtune` command and its subcommands."""
