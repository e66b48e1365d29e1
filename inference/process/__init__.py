"""Management of child processes, including their logs, environments and stack traces."""
