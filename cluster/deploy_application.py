"""Deploy a model as an application on a Ray cluster, keep it there until SIGTERM, and then delete it.

    python -m cluster.deploy_application --model DIR --name ID --settings JSON

The bot starts this process as its engine if `inference.engine` is "ray". The process is supervised, swapped
and stopped like any engine, but questions go directly to the cluster. It exits with an error if its
application fails or is deleted.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig
from ray.serve.schema import ApplicationStatus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.model_cache import publish
from cluster.replica import EngineReplica, ServedModel
from inference.engines.access_key import own_key
from inference.engines.commands import concurrency, on_nodes
from inference.process.parent_watch import watch_parent
from inference.serving.engine_launch import application_name
from inference.settings import InferenceSettings
from storage.model_manifest import files_hash

_log: Final = logging.getLogger("thumbtune.ray")

_LOOK_SECONDS: Final = 2.0
_DELETE_SECONDS: Final = 10.0
_NAMESPACE: Final = "thumbtune"
_SEPARATOR: Final = "#"
_KEEP_ALIVE_SECONDS: Final = 3600
"""An hour, because if the server closed a pooled connection just before a question, the bot would see a crash."""


class Owner:
    """A named actor that lives as long as the process that deployed an application."""


def deploy(model: ServedModel, settings: InferenceSettings, key: str) -> None:
    """Deploy the model's application, and return once each of its engines has answered a question about a picture.

    Raises:
        RuntimeError: An engine could not be started.
    """
    cluster, answers = settings.ray, concurrency(on_nodes(settings), settings)
    engine = serve.deployment(
        EngineReplica,
        name="engine",
        ray_actor_options={"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus},
        # More than the bot uses for questions, so that a health probe or a warm-up prompt never waits behind them.
        max_ongoing_requests=answers + 2,
        autoscaling_config=AutoscalingConfig(
            min_replicas=cluster.replicas.min,
            # All chats move to a new model at once, so it starts with as many engines as the old one has.
            initial_replicas=min(max(cluster.replicas.min, _engines(settings)), cluster.replicas.max),
            max_replicas=cluster.replicas.max,
            target_ongoing_requests=max(answers / 2, 1),
            upscale_delay_s=cluster.replicas.grow_after,
            downscale_delay_s=cluster.replicas.shrink_after,
            # Ray's defaults, 30 and 10 s, would lengthen shorter delays.
            look_back_period_s=min(30, max(cluster.replicas.grow_after, 1)),
            metrics_interval_s=min(10, max(cluster.replicas.grow_after / 3, 0.5)),
        ),
        # The deployment fails if two attempts to load the model fail.
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        health_check_timeout_s=settings.token_timeout + 10,
        request_router_config=RequestRouterConfig(
            request_router_class="cluster.router:ChatRouter",
            request_router_kwargs={"remember": settings.warm_age, "num_fallback_replicas": cluster.replicas.max - 1},
        ),
    )
    name = application_name(settings, model.id)
    given = settings.model_dump(mode="json", exclude_defaults=True, exclude={"api_key"})
    try:
        serve.run(engine.bind(model, given, key), name=name, route_prefix=f"/{name}")
    except RuntimeError as error:
        application = serve.status().applications.get(name)
        why = [each.message for each in application.deployments.values()] if application else []
        raise RuntimeError("\n".join([str(error), *why])) from None


def _engines(settings: InferenceSettings) -> int:
    """Return the number of running engines in the bot's largest application."""
    applications = serve.status().applications
    return max(
        (
            each.replica_states.get("RUNNING", 0)
            for name, application in applications.items()
            if name.startswith(f"{settings.ray.name}-")
            for each in application.deployments.values()
        ),
        default=0,
    )


def _start_serve(url: str) -> None:
    """Start Ray Serve on the head node unless it is already running."""
    address = urlsplit(url)
    serve.start(
        # A single proxy, because each proxy keeps its own record of which engine serves which chat.
        proxy_location="HeadOnly",
        http_options=HTTPOptions(
            host="127.0.0.1" if address.hostname in ("127.0.0.1", "localhost") else "0.0.0.0",
            port=address.port or 80,
            keep_alive_timeout_s=_KEEP_ALIVE_SECONDS,
        ),
    )


def _own(name: str) -> Any:
    """Start the owner of an application on this process's node, so that the loss of another node does not end it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # An earlier process that deployed this model may not have exited yet.
    unique = f"{name}{_SEPARATOR}{secrets.token_hex(4)}"
    return ray.remote(Owner).options(name=unique, num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _delete_orphans(settings: InferenceSettings, own: str) -> None:
    """Delete the bot's applications whose owners no longer exist."""
    owned = {each["name"].partition(_SEPARATOR)[0] for each in ray.util.list_named_actors(all_namespaces=True)}
    orphans = [
        name
        for name in serve.status().applications
        if name.startswith(f"{settings.ray.name}-") and name not in owned and name != own
    ]
    for name in orphans:
        _log.info("deleting %s, whose owner no longer exists", name)
        serve.delete(name)


def _delete(name: str) -> None:
    """Request the deletion of the application; its engines finish their answers first."""
    serve.delete(name, _blocking=False)
    # The call only sends a message, which would be lost if this process exited too soon.
    while (
        application := serve.status().applications.get(name)
    ) and application.status is not ApplicationStatus.DELETING:
        time.sleep(0.05)


def _stay(name: str) -> str:
    """Wait until the application has failed or been deleted, and return the reason."""
    while True:
        time.sleep(_LOOK_SECONDS)
        application = serve.status().applications.get(name)
        if application is None:
            return "it was deleted"
        if application.status is ApplicationStatus.DEPLOY_FAILED:
            return application.message


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the process from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.deploy_application", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory in the official layout")
    parser.add_argument("--name", required=True, help="the model's ID")
    parser.add_argument("--settings", type=InferenceSettings.model_validate_json, default=InferenceSettings())
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    key, settings = own_key(), options.settings
    watch_parent(_DELETE_SECONDS)
    model_hash = files_hash(options.model)
    address = str(options.model.resolve())
    if settings.ray.models:
        address = publish(options.model, settings.ray.models, model_hash)
    name = application_name(settings, options.name)
    ray.init(address=settings.ray.address, namespace=_NAMESPACE, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    owner = _own(name)  # noqa: F841 - the actor lives as long as its handle
    _start_serve(settings.ray.url)
    _delete_orphans(settings, name)
    try:
        deploy(ServedModel(options.name, address, model_hash), settings, key)
        _log.info("%s is served at %s/%s", options.name, settings.ray.url, name)
        _log.error("the application %s has ended: %s", name, _stay(name))
    finally:
        _delete(name)
        # Ray's own shutdown takes seconds, and the bot would wait for it.
        if not isinstance(sys.exception(), SystemExit):
            traceback.print_exc()
        logging.shutdown()
        os._exit(1)


if __name__ == "__main__":
    main()
