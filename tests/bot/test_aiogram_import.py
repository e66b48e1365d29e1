"""aiogram imported without building its validators, which its types build when they are first used."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from bot.aiogram_import import import_aiogram
import_aiogram()
import aiogram.methods, aiogram.types
from pydantic import BaseModel
found = {**vars(aiogram.types), **vars(aiogram.methods)}
models = {name: each for name, each in found.items() if isinstance(each, type) and issubclass(each, BaseModel)}
assert len(models) > 500 and not aiogram.types.Message.__pydantic_complete__
message = {"message_id": 1, "date": 1, "chat": {"id": 1, "type": "private"}, "text": "Hi"}
update = aiogram.types.Update.model_validate({"update_id": 1, "message": message})
assert isinstance(update.message, aiogram.types.Message) and update.message.chat.type == "private"
for each in models.values():
    each.model_rebuild()
print([name for name, each in models.items() if not each.__pydantic_complete__])
"""


def test_each_type_builds_its_validator_later() -> None:
    """After the import nothing is built yet; an update is parsed as usual, and every type and method can be built."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
