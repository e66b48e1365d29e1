"""Serving and training on a Ray cluster: the processes that the bot starts, and the code that runs on the nodes."""
