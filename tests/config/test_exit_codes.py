"""The file in which ranks tell the batch script how they end."""

from pathlib import Path

from ernie_vilg.config.exit_codes import ExitCode, write_ending


def test_a_second_rank_leaves_the_first_ending_whole_until_its_own_is(tmp_path: Path) -> None:
    path = tmp_path / "ending.txt"
    write_ending(str(path), ExitCode.BAD_SETTINGS, "first")

    with path.open() as read_by_the_script:
        write_ending(str(path), ExitCode.BAD_SETTINGS, "second")
        content = read_by_the_script.read()

    assert content == "2\nfirst\n"
    assert path.read_text() == "2\nsecond\n"
    assert [each.name for each in tmp_path.iterdir()] == ["ending.txt"]


def test_without_a_file_nothing_is_written() -> None:
    write_ending(None, ExitCode.STOPPED)
