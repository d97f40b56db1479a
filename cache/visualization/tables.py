"""A table that shows itself: in a terminal through rich, in a notebook and on a page as HTML."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.visualization.markup import Html, element, join

if TYPE_CHECKING:
    import rich.table

_CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0;overflow-wrap:anywhere"
_HEAD = _CELL + ";white-space:nowrap"
_TITLE = "text-align:left;font-weight:bold;padding:6px 0 2px"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a title; without columns, the first cell of a row names the others."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...] = ()

    def __rich__(self) -> "rich.table.Table":
        from rich.table import Table as RichTable
        from rich.text import Text

        width = len(self.columns) or max((len(row) for row in self.rows), default=1)
        shown = RichTable(title=Text(self.title), title_justify="left", show_header=bool(self.columns))
        for column in self.columns or ("",) * width:
            shown.add_column(column, overflow="fold")
        for row in self.rows:
            shown.add_row(*map(Text, row))
        return shown

    def html(self) -> Html:
        """The table as HTML; all text is escaped."""
        head = element("tr", *(element("th", name, style=_HEAD) for name in self.columns)) if self.columns else ""
        body = [
            element("tr", self._name(row[0]), *(element("td", cell, style=_CELL) for cell in row[1:]))
            for row in self.rows
        ]
        caption = element("caption", self.title, style=_TITLE)
        return element("table", caption, element("tbody", head, *body), style="border-collapse:collapse")

    def markdown(self) -> str:
        """The table as Markdown, under a heading; the first column is to the left and the others to the right."""
        columns = self.columns or ("",) * max((len(row) for row in self.rows), default=1)
        lines = (columns, ("---", *("---:",) * (len(columns) - 1)), *self.rows)
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])

    def _name(self, text: str) -> Html:
        return element("td" if self.columns else "th", text, style=_HEAD)

    def _repr_html_(self) -> str:
        return self.html()


def card(title: str, *parts: object) -> Html:
    """What an object shows of itself in a notebook: a title over tables and pictures."""
    return element("div", element("div", title, style=_TITLE), join(*parts), style="max-width:1100px;line-height:1.35")
