"""A deployment whose engines run on a Ray cluster: canaries, models that do not start, and engines that hang."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from ray import serve
from ray.cluster_utils import Cluster

from inference.internvl2.tiny import CHECKPOINT
from inference.messages import EngineUnavailable
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from tests.support.deployments import ask

pytestmark = pytest.mark.timeout(600)


@asynccontextmanager
async def deployed(cluster: Cluster, url: str, folder: Path, **settings: object) -> AsyncIterator[Deployment]:
    """Yield a deployment of the base model on the cluster, and check that it leaves nothing behind."""
    ray = {
        "address": cluster.address,
        "url": url,
        "num_cpus": 0.3,
        "name": "other",
    }
    made = InferenceSettings.model_validate({"engine": "ray", "drain_timeout": 5, "ray": ray, **settings})
    deployment = Deployment(made, "base", CHECKPOINT, logs=folder / "logs")
    try:
        await deployment.start()
        yield deployment
    finally:
        await deployment.stop()
    async with asyncio.timeout(60):
        while serve.status().applications:
            await asyncio.sleep(0.2)


def engines(model: str) -> list[psutil.Process]:
    """Return the processes of a model's engines."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "inference.engines.cpu.server" in line and model in line:
            found.append(process)
    return found


async def test_a_canary_answers_beside_the_live_model(cluster: Cluster, serve_url: str, tmp_path: Path) -> None:
    """Each has an application of its own, and the canary's goes when the trial ends.

    A model that cannot be loaded is refused with the engine's words, and the live one answers on.
    """
    async with deployed(cluster, serve_url, tmp_path) as deployment:
        await deployment.start_canary("run-1", CHECKPOINT, 1)
        assert set(serve.status().applications) == {"other-base", "other-run-1"}
        assert (await ask(deployment, "What is this?")).answer.model == "run-1"
        await deployment.stop_canary()
        assert (await ask(deployment, "What is this?")).answer.model == "base"
        broken = tmp_path / "broken"
        shutil.copytree(CHECKPOINT, broken)
        (broken / "model.safetensors").write_bytes(b"no weights")
        with pytest.raises(EngineUnavailable, match="header"):
            await deployment.swap("run-2", broken)
        assert (await ask(deployment, "What is this?")).answer.model == "base"


async def test_an_engine_that_hangs_is_replaced(cluster: Cluster, serve_url: str, tmp_path: Path) -> None:
    """Its question is answered by the engine that takes its place."""
    async with deployed(cluster, serve_url, tmp_path, token_timeout=8) as deployment:
        (engine,) = engines("base")
        engine.send_signal(signal.SIGSTOP)
        try:
            heard = await ask(deployment, "What is this?")
        finally:
            with suppress(psutil.NoSuchProcess):
                engine.kill()
        assert heard.restarts
        assert heard.answer.model == "base"
