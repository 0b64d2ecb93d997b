"""A command line with several values of a setting, and the jobs that it stands for."""

import pytest

from ernie_vilg.errors import InputError
from launch.support.sweep import jobs_of


@pytest.mark.parametrize(
    ("option", "values"),
    [
        pytest.param("a.b=1e-3,3e-4", ["1e-3", "3e-4"], id="choices, as they are typed"),
        pytest.param("a.b=choice(x, y)", ["x", "y"], id="the same by name"),
        pytest.param("a.b=range(1,7,step=2)", ["1", "3", "5"], id="a range"),
        pytest.param("a.b=range(0.1,0.35,0.1)", ["0.1", "0.2", "0.3"], id="of decimals"),
        pytest.param("a.b=sort(3,1,2)", ["1", "2", "3"], id="in order"),
        pytest.param("a.b=[1,2],[3]", ["[1,2]", "[3]"], id="lists"),
        pytest.param("a.b='x,y',z", ["'x,y'", "z"], id="a quoted comma separates nothing"),
        pytest.param("++a.b=null,1", ["null", "1"], id="behind Hydra's plus"),
    ],
)
def test_a_setting_has_several_values(option: str, values: list[str]) -> None:
    jobs = jobs_of(["c=1", option])

    assert [job.swept for job in jobs] == [{"a.b": value} for value in values]
    key = option.partition("=")[0]
    assert [job.options for job in jobs] == [("c=1", f"{key}={value}") for value in values]


def test_settings_are_combined_and_the_last_one_varies_fastest() -> None:
    jobs = jobs_of(["a=1,2", "b=x,y", "list=[1,2]", "text='p,q'"])

    assert [tuple(job.swept.values()) for job in jobs] == [
        ("1", "x"), ("1", "y"), ("2", "x"), ("2", "y"),
    ]  # fmt: skip
    assert {job.options[2:] for job in jobs} == {("list=[1,2]", "text='p,q'")}


def test_a_jobs_folder_has_its_name_from_its_own_values_only() -> None:
    few, more = jobs_of(["a=1,2"]), jobs_of(["c=5", "a=0,1,2"])

    assert [job.name for job in few] == ["a=1", "a=2"]
    assert [job.name for job in more][1:] == ["a=1", "a=2"]


def test_names_that_files_cannot_have_stay_apart() -> None:
    first, second = (job.name for job in jobs_of(["a=x/y,x:y"]))

    assert first.startswith("a=x_y-")
    assert second.startswith("a=x_y-")
    assert first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["a=1"], "without a setting of several values", id="no sweep"),
        pytest.param(
            ["a=interval(0,1)"], "interval, glob, shuffle .* not supported", id="interval"
        ),
        pytest.param(["a=glob(*)"], "interval, glob, shuffle .* not supported", id="glob"),
        pytest.param(["a=shuffle(1,2)"], "interval, glob, shuffle .* not supported", id="shuffle"),
        pytest.param(["a=tag(x,choice(1,2))"], "and tag are not supported", id="tags"),
        pytest.param(["a=1,1"], "the job a=1 is there twice", id="twice"),
        pytest.param(["a=range(0,10000)"], "more than 1000 jobs", id="a slip"),
        pytest.param(["a=range(0,1,step=0)"], "no range", id="no step"),
        pytest.param(["a=range(3,1)"], "this range has no value", id="empty range"),
        pytest.param(["a=x],y"], "Hydra, which cannot read this: quote", id="not readable"),
    ],
)
def test_what_is_no_sweep_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        jobs_of(options)
