"""An arbitrary row of a LLaVA file is either valid or refused with the module's own error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.internvl2.tiny import CHECKPOINT
from tests.support.lessons import photo
from training.data.llava import row
from training.data.row_parser import RowError, parse_row, read_rows
from training.data.validation import RowValidator, Rules, ValidRow

WORDS = st.one_of(
    st.sampled_from(["human", "gpt", "<image>", "<image>\nWhat?", "A cup.", "cup.jpg", "Image-1: <image>", "\ud800"]),
    st.text(st.characters(codec=None), max_size=20),
)
NAMES = st.sampled_from(["id", "image", "image_wh", "conversations", "from", "value", "loss", "system"])
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(NAMES, WORDS), inner, max_size=6)),
    max_leaves=20,
)
TURNS = st.fixed_dictionaries({"from": WORDS, "value": WORDS}, optional={"loss": ANYTHING})
ROWS = st.one_of(
    ANYTHING,
    st.fixed_dictionaries(
        {"conversations": st.one_of(ANYTHING, st.lists(TURNS, max_size=4))},
        optional={"id": ANYTHING, "image": st.one_of(ANYTHING, WORDS, st.lists(WORDS)), "system": ANYTHING},
    ),
    st.fixed_dictionaries(
        {
            "image": st.one_of(WORDS, st.lists(WORDS, max_size=2)),
            "conversations": st.tuples(
                st.fixed_dictionaries({"from": st.just("human"), "value": WORDS}),
                st.fixed_dictionaries({"from": st.just("gpt"), "value": WORDS}),
            ).map(list),
        }
    ),
)
OFTEN = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RowValidator]:
    folder = tmp_path_factory.mktemp("home")
    made = RowValidator(Rules(CHECKPOINT, folder, None, "Be kind.", 0, 2048, clean=True))
    yield made
    made.close()


@OFTEN
@given(ROWS)
def test_a_row_is_read_or_invalid(content: Any) -> None:
    """Arbitrary content is either refused with RowError or read as a row.

    A row that was read stays the same when it is written and read again.
    """
    with suppress(RowError):
        read = parse_row(content, where="here", system="Be kind.")
        again = parse_row(row(read), where="here", system="Be kind.")
        assert (again.turns, again.learned) == (read.turns, read.learned)


@OFTEN
@given(ROWS)
def test_a_row_is_validated(validator: RowValidator, tmp_path: Path, content: Any) -> None:
    """Validating arbitrary content returns a `ValidRow` or a `RowError` and raises nothing.

    Rows may name several pictures, of which only one exists.
    """
    (tmp_path / "cup.jpg").write_bytes(photo("red"))
    (found,), _ = validator.validate(Path("rows.json"), tmp_path, [(1, content)])
    assert isinstance(found, ValidRow | RowError)
    if isinstance(found, ValidRow):
        json.loads(found.line)


@OFTEN
@given(st.one_of(st.binary(max_size=200), st.lists(ROWS, max_size=3).map(lambda rows: json.dumps(rows).encode())))
def test_a_file_is_read_or_invalid(tmp_path: Path, data: bytes) -> None:
    """A file of arbitrary bytes is read, or refused with RowError, both as a JSON list and as JSON lines."""
    for name in ("rows.json", "rows.jsonl"):
        file = tmp_path / name
        file.write_bytes(data)
        with suppress(RowError):
            list(read_rows(file))
