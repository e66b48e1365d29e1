"""Run lmdeploy's stock OpenAI server with the engine settings of ours.

Started by lmdeploy_serving.py with the arguments of inference/engines/lmdeploy/server.py. Its own command line
is not used because it reads the number of KV blocks as a float, that is, as a share of the free memory.
"""

from __future__ import annotations

from inference.engines.lmdeploy import server


def main() -> None:
    """Serve until killed."""
    options = server.parser().parse_args()
    config, _ = server.engine_config(options)
    server.run(options, config, options.name)


if __name__ == "__main__":
    main()
