"""lmdeploy's stock OpenAI server as a peer: the same engine settings as ours, nothing of ours in it.

Started by lmdeploy_serving.py with the arguments of inference/engines/lmdeploy/server.py. Its own command line would
do, but takes the number of KV blocks as a float, which it reads as a share of the free memory.
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
