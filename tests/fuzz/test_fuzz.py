"""Damaged inputs end in a named error, in counted damage or in a right reading: a fast share.

`make fuzz` runs more cases of the same kind; the first ones are these.
"""

import pytest

from tests.fuzz.runner import TARGETS, Fuzzer, findings_text, prepare, table


@pytest.mark.timeout(240)
def test_no_damaged_input_is_read_wrongly_or_breaks_a_reader() -> None:
    prepare(TARGETS)
    fuzzer = Fuzzer(TARGETS, seed=0, folder=None)

    fuzzer.run(seconds=200, workers=2, slice_seconds=60)

    assert not fuzzer.findings, f"{findings_text(fuzzer)}\n{table([*fuzzer.rows.values()])}"
    assert [fuzzer.rows[target.name].mutations for target in TARGETS] == [
        target.quick for target in TARGETS
    ]
