"""A Ray cluster of three simulated nodes on loopback, shared by the tests in this folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

# Set before Ray is imported, for this process and all children: nodes and drivers without the token are refused.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")

import ray
from ray import serve
from ray.cluster_utils import Cluster

from inference.serving.engine_launch import free_port
from tests.support.bot_process import ROOT

CORES = 1.0


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster of a head node and two workers, each with one core, and connect this process to it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        environment.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        node = {"num_cpus": CORES, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        for _ in range(2):
            nodes.add_node(num_cpus=CORES, object_store_memory=100 * 2**20)
        ray.init(address=nodes.address, namespace="tests", log_to_driver=False)
        yield nodes
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="session")
def serve_url() -> str:
    """Return the address at which the first application starts Ray Serve for all tests."""
    return f"http://127.0.0.1:{free_port()}"
