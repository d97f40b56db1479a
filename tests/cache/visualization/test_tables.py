from rich.console import Console

from cache.visualization.html import card, to_html
from cache.visualization.tables import Table

EVIL = "<script>[bold red]"


def test_a_table_on_a_terminal_takes_text_as_it_is() -> None:
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(Table(title=EVIL, columns=("name", "value"), rows=((EVIL, "1"),)))
    console.print(Table(title="facts", rows=(("a", "b"),)))
    text = console.export_text()
    assert text.count(EVIL) == 2
    assert "name" in text
    assert "facts" in text


def test_a_table_on_a_page_is_escaped() -> None:
    table = Table(title=EVIL, columns=(EVIL, "value"), rows=((EVIL, "1"),))
    page = card(EVIL, [table])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4
    assert to_html(table).strip() in page


def test_without_columns_the_first_cell_is_the_rows_name() -> None:
    html = to_html(Table(title="", rows=(("a", "b"),)))
    assert html.count("<th") == 1
    assert html.count("<td") == 1


def test_markdown_aligns_numbers_right() -> None:
    table = Table(title="facts", columns=("name", "value"), rows=(("a", "1"),))
    assert table.markdown() == "### facts\n\n| name | value |\n| --- | ---: |\n| a | 1 |"
