from pathlib import Path

import jinja2
import pytest

from ernie_vilg.evaluation.page import data_address, render, visible


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with one template, which extends the common page."""
    name = f"room_{tmp_path.name}"
    (tmp_path / name / "templates").mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "templates/greeting.html").write_text(
        '{% extends "page.html" %}{% from "parts.html" import section %}'
        "{% block body %}{% call section(title) %}{{ word }}{% endcall %}{% endblock %}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_room_extends_the_common_page(package: str) -> None:
    page = render(package, "greeting.html", title="Hello", word="world")

    assert page.startswith("<!doctype html>\n")
    assert "<title>Hello</title>" in page
    assert "<h2>Hello</h2>\nworld" in page
    assert ".cards { display: grid;" in page
    assert page.endswith("</html>\n")


def test_every_value_is_escaped(package: str) -> None:
    page = render(package, "greeting.html", title='</title><"', word="<b>&'\"")

    assert "<title>&lt;/title&gt;&lt;&#34;</title>" in page
    assert "<h2>&lt;/title&gt;&lt;&#34;</h2>\n&lt;b&gt;&amp;&#39;&#34;" in page


def test_a_name_without_a_value_is_an_error(package: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'word' is undefined"):
        render(package, "greeting.html", title="Hello")


def test_the_style_is_no_value_of_the_page() -> None:
    # Quotes in the style would be escaped if it were a value, and fonts would have no name.
    assert '"Noto Sans CJK SC"' in render("ernie_vilg.evaluation", "page.html", title="")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("红色的圆, <b>", "红色的圆, <b>", id="visible text"),
        pytest.param("\u200babc", "\\u200babc", id="zero width"),
        pytest.param("a\u202eb", "a\\u202eb", id="direction of writing"),
        pytest.param("\x1b[2J", "\\x1b[2J", id="terminal escape"),
        pytest.param("\U0001f468\u200d\U0001f52c", "\U0001f468\u200d\U0001f52c", id="joined emoji"),
        pytest.param("x" * 1003, "x" * 1000 + " (and 3 characters more)", id="long"),
    ],
)
def test_text_from_outside_hides_nothing(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_data_address_holds_the_content() -> None:
    assert data_address(b"<svg/>", "image/svg+xml") == "data:image/svg+xml;base64,PHN2Zy8+"
