"""Child processes: starting and ending them, their logs, environment and stacks."""
