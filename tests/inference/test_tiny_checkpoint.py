"""The files of the shipped internvl2-tiny: layout, size, model code and chat template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference.chat_format.template import jinja_chat_template
from inference.internvl2 import checkpoint as official
from inference.internvl2.checkpoint import load_model
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT

pytestmark = pytest.mark.long


def test_the_checkpoint_is_complete_and_small() -> None:
    """The checkpoint has every file of the official layout in at most 8 MB, with weights in bfloat16."""
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert sum(files.values()) <= 8_000_000
    assert {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        *official.MODEL_CODE,
    } <= set(files)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert load_model(CHECKPOINT).dtype == torch.bfloat16


def test_the_model_code_is_in_the_repository_only_once() -> None:
    """The checkpoint's model code consists of symbolic links to inference.internvl2.

    Copies of the directory contain the files themselves.
    """
    source = Path(official.__file__).parent
    official.copy_code(CHECKPOINT)
    for name in official.MODEL_CODE:
        assert (CHECKPOINT / name).is_symlink()
        assert (CHECKPOINT / name).resolve() == (source / name).resolve()


def test_the_chat_template_is_the_one_of_prompts() -> None:
    """The tokenizer's chat template is the one defined in inference.chat_format.template."""
    assert json.loads((CHECKPOINT / "tokenizer_config.json").read_text())["chat_template"] == jinja_chat_template(
        INTERNVL2
    )


def test_turbomind_supports_the_dimensions() -> None:
    """As TurboMind requires, vision and language heads have size 64, and widths are multiples of 64.

    The downsample ratio is 0.5, and the pixel shuffle is v2.
    """
    config = json.loads((CHECKPOINT / "config.json").read_text())
    for part in (config["vision_config"], config["llm_config"]):
        assert part["hidden_size"] / part["num_attention_heads"] == 64
        assert part["hidden_size"] % 64 == part["intermediate_size"] % 64 == 0
    assert (config["downsample_ratio"], config["ps_version"]) == (0.5, "v2")


def test_auto_model_loads_the_checkpoint(tmp_path: Path) -> None:
    """`AutoModel` loads the checkpoint with the model code in its directory, and the model computes logits."""
    script = (
        "import sys, torch; from transformers import AutoModel, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)\n"
        "model.img_context_token_id = tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>')\n"
        "ids = tokenizer('<img>' + '<IMG_CONTEXT>' * 16 + '</img>', return_tensors='pt').input_ids\n"
        "print(type(model).__module__, tuple(model(torch.zeros(1, 3, 112, 112), ids).logits.shape))\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, str(CHECKPOINT)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("transformers_modules.")
    assert "(1, 19, " in done.stdout
