"""A checkpoint with hostile Python files, each of which leaves a mark when it is imported."""

from __future__ import annotations

import json
from pathlib import Path

_MARK = "was-imported"
_MODULES: dict[str, object] = {
    "AutoConfig": "configuration_internvl2.InternVLChatConfig",
    "AutoModel": "modeling_internvl2.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl2.InternVLChatModel",
}


def plant(checkpoint: Path) -> None:
    """Add hostile code for every module to which the checkpoint's configuration and tokenizer refer."""
    _name_modules(checkpoint / "config.json", _MODULES)
    tokenizer = ["tokenization_internlm2.InternLM2Tokenizer"] * 2
    _name_modules(checkpoint / "tokenizer_config.json", {"AutoTokenizer": tokenizer})
    code = f"from pathlib import Path\nPath({str(checkpoint / _MARK)!r}).touch()\nraise RuntimeError('planted')\n"
    for module in {*planted(checkpoint), "tokenization_internlm2", "__init__"}:
        (checkpoint / f"{module}.py").write_text(code)


def planted(checkpoint: Path) -> set[str]:
    """Return the names of the Python modules in a checkpoint's directory."""
    return {file.stem for file in checkpoint.glob("*.py")}


def ran(checkpoint: Path) -> bool:
    """Return whether any hostile module of the checkpoint was imported."""
    return (checkpoint / _MARK).exists()


def _name_modules(file: Path, modules: dict[str, object]) -> None:
    fields = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(fields | {"auto_map": modules}), encoding="utf-8")
