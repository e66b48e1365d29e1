"""A deployment whose engines run on a Ray cluster: canaries, models that do not start, and engines that hang."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from ray import serve
from ray.cluster_utils import Cluster

from inference.engines.commands import COMMANDS, Kind
from inference.internvl2.tiny import CHECKPOINT
from inference.messages import EngineUnavailable
from inference.serving.deployment import Deployment
from inference.serving.engine_launch import Launch
from inference.serving.engine_process import Worker
from inference.settings import InferenceSettings
from storage.model_manifest import files_hash
from tests.support.children import until
from tests.support.deployments import ask

pytestmark = pytest.mark.timeout(600)


def settings_for(cluster: Cluster, url: str, python: str = "", **more: object) -> InferenceSettings:
    """Return the settings of a bot whose applications are named `other-…` and whose engines run with `python`."""
    ray = {"address": cluster.address, "url": url, "num_cpus": 0.3, "name": "other", "python": python}
    return InferenceSettings.model_validate({"engine": "ray", "drain_timeout": 5, "ray": ray, **more})


@asynccontextmanager
async def deployed(
    cluster: Cluster, url: str, folder: Path, python: str = "", **more: object
) -> AsyncIterator[Deployment]:
    """Yield a deployment of the base model on the cluster, and check that it leaves nothing behind."""
    deployment = Deployment(settings_for(cluster, url, python, **more), "base", CHECKPOINT, logs=folder / "logs")
    try:
        await deployment.start()
        yield deployment
    finally:
        await deployment.stop()
    await until(lambda: not serve.status().applications, 60)


def engines() -> list[psutil.Process]:
    """Return the engine processes of these tests, which serve the shipped checkpoint."""
    model = files_hash(CHECKPOINT)
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "inference.engines.cpu.server" in line and any(model in word for word in line):
            found.append(process)
    return found


async def test_a_canary_answers_beside_the_live_model(
    cluster: Cluster, serve_url: str, tmp_path: Path, warm_python: str
) -> None:
    """Each model has its own application, and the canary's is deleted when the trial ends.

    A model that cannot be loaded is refused with the engine's error, and the live model keeps answering.
    """
    async with deployed(cluster, serve_url, tmp_path, python=warm_python) as deployment:
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


async def test_a_killed_process_is_no_loss(cluster: Cluster, serve_url: str, tmp_path: Path, warm_python: str) -> None:
    """When the process that deployed an application is killed, its successor takes the application over.

    Without a successor, the application stays until the bot deploys another one.
    """
    settings = settings_for(cluster, serve_url, warm_python)
    launch = Launch("run-9", CHECKPOINT, COMMANDS[Kind.RAY], tmp_path / "log", settings, endpoint=serve_url)
    worker = Worker(launch)
    await worker.start()
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    await worker.gone()
    await worker.stop()
    assert "other-run-9" in serve.status().applications
    async with deployed(cluster, serve_url, tmp_path, python=warm_python) as deployment:
        assert set(serve.status().applications) == {"other-base"}
        killed = deployment.status().pid
        assert killed
        os.kill(killed, signal.SIGKILL)
        await until(lambda: deployment.status().restarts)
        assert (await ask(deployment, "What is this?")).answer.model == "base"
        assert deployment.status().pid != killed


async def test_an_engine_that_hangs_is_replaced(cluster: Cluster, serve_url: str, tmp_path: Path) -> None:
    """A question to an engine that hangs is answered by its replacement."""
    async with deployed(cluster, serve_url, tmp_path, token_timeout=6) as deployment:
        await until(lambda: len(engines()) == 1)  # those of the previous test have ended
        (engine,) = engines()
        engine.send_signal(signal.SIGSTOP)
        try:
            heard = await ask(deployment, "What is this?")
        finally:
            with suppress(psutil.NoSuchProcess):
                engine.kill()
        assert heard.restarts
        assert heard.answer.model == "base"
