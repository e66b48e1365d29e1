"""The families of InternVL checkpoints whose prompt formats are known.

A checkpoint's config.json names its chat template. The templates are those of the official code
(OpenGVLab/InternVL, internvl_chat/internvl/conversation.py). This module uses only the standard library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

LANGUAGE_MODELS: Final = ("InternLM2ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM")
"""The supported language models, as named in the `architectures` of config.json's `llm_config`."""


class UnknownFamily(ValueError):
    """A checkpoint names a chat template that is not in `FAMILIES`."""


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """The properties of a family of checkpoints that determine the format of its prompts.

    Attributes:
        template: The name of the chat template in config.json.
        models: The names of the models that use the template.
        system: The official system text, with which the models were trained if no other text was given.
        after_turn: The text between the end token of a turn and the next turn.
        end: The token that ends a turn.
        before_role: The text in front of a role's name at the start of a turn.
        after_role: The text between a role's name and the content of the turn.
    """

    template: str
    models: str
    system: str
    after_turn: str = ""
    end: str = "<|im_end|>"
    before_role: str = "<|im_start|>"
    after_role: str = "\n"

    def opening(self, role: str) -> str:
        """Return the text that starts a turn of `role`, which is "system", "user" or "assistant"."""
        return f"{self.before_role}{role}{self.after_role}"


INTERNVL2: Final = ModelFamily(
    "internlm2-chat",
    "InternVL 1.5 and InternVL2",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
)
HERMES_2: Final = replace(INTERNVL2, template="Hermes-2", models="InternVL2-1B")
INTERNVL2_5: Final = ModelFamily(
    "internvl2_5",
    "InternVL2.5, InternVL3 and InternVL3.5",
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    after_turn="\n",
)
PHI3: Final = replace(
    INTERNVL2,
    template="phi3-chat",
    models="InternVL2-4B and Mini-InternVL-Chat-4B-V1-5",
    end="<|end|>",
    before_role="<|",
    after_role="|>\n",
)

FAMILIES: Final = {each.template: each for each in (INTERNVL2, HERMES_2, INTERNVL2_5, PHI3)}


def family_of(config: dict[str, Any]) -> ModelFamily:
    """Return the family of a checkpoint, given the content of its config.json.

    Raises:
        UnknownFamily: The chat template that `config` names is not known.
    """
    template = config.get("template")
    if isinstance(template, str) and template in FAMILIES:
        return FAMILIES[template]
    known = ", ".join(f"{each.template} ({each.models})" for each in FAMILIES.values())
    raise UnknownFamily(f"config.json names the chat template {template!r}, but only these are supported: {known}")


def language_model_of(config: dict[str, Any]) -> str:
    """Return the class name of a checkpoint's language model, given the content of its config.json."""
    return str(((config.get("llm_config") or {}).get("architectures") or LANGUAGE_MODELS)[0])


def read_family(directory: Path) -> ModelFamily:
    """Return the family of the checkpoint in `directory`.

    Raises:
        OSError: config.json cannot be read.
        ValueError: config.json is not valid JSON, or its chat template is not known (`UnknownFamily`).
    """
    config = json.loads((directory / "config.json").read_bytes())
    return family_of(config if isinstance(config, dict) else {})
