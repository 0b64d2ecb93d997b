"""Messages of errors that a person can mend stay readable."""

import pickle

import pytest

from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.planning.history import RunRecord


def test_a_message_of_a_megabyte_keeps_its_ends() -> None:
    error = InputError(f"loss={'9' * 1_000_000}: must be below 1")

    assert str(error).startswith("loss=99")
    assert str(error).endswith("99: must be below 1")
    assert " [996," in str(error)
    assert len(str(error)) < 5000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_file_of_long_names_is_answered_shortly() -> None:
    with pytest.raises(InputError, match="does not know: use the version that wrote it") as caught:
        from_json({"x" * 100_000: 1}, RunRecord, "measured.json")

    assert len(str(caught.value)) < 10_000
