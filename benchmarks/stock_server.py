"""lmdeploy's stock OpenAI server as a peer: the same engine settings as ours, nothing of ours in it.

Started by lmdeploy_serving.py with the arguments of inference/lmdeploy_server.py. Its own command line would do, but
takes the number of KV blocks as a float, which it reads as a share of the free memory.
"""

from __future__ import annotations

from lmdeploy.model import ChatTemplateConfig
from lmdeploy.serve.openai.api_server import serve

from inference import lmdeploy_server
from inference.prompt import lmdeploy_template


def main() -> None:
    """Serve until killed."""
    options = lmdeploy_server.parser().parse_args()
    serve(
        str(options.model),
        model_name=options.name,
        backend="turbomind",
        backend_config=lmdeploy_server.engine_config(options),
        chat_template_config=ChatTemplateConfig(**lmdeploy_template()),
        server_name=options.host,
        server_port=options.port,
        log_level="WARNING",
        trust_remote_code=True,
    )


if __name__ == "__main__":
    main()
