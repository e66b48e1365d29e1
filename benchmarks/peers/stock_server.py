"""Run lmdeploy's stock OpenAI server with the engine settings of thumbtune's lmdeploy server.

serving.py starts this script with the arguments of inference/engines/lmdeploy/server.py. The
stock server's own command line is not used because it reads the number of KV blocks as a float, that is,
as a share of the free memory.
"""

from __future__ import annotations

from inference.engines.lmdeploy import server


def main() -> None:
    """Run the server until it is killed."""
    options = server.parser().parse_args()
    config, _ = server.engine_config(options)
    server.run(options, config, options.name)


if __name__ == "__main__":
    main()
