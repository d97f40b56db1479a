"""A table of text and its renderings for a terminal and for Markdown; `to_html` makes its HTML."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.terminal.console import printable

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a title; without columns, the first cell of a row names the others."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.columns) or max((len(row) for row in self.rows), default=1)

    def __rich__(self) -> "rich.table.Table":
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(printable(self.title)), title_justify="left", show_header=bool(self.columns))
        for column in self.columns or ("",) * self.width:
            table.add_column(printable(column), overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table

    def markdown(self) -> str:
        """The table as Markdown under a heading; the first column is aligned left, the others right."""
        columns = self.columns or ("",) * self.width
        lines = (columns, ("---", *("---:",) * (self.width - 1)), *self.rows)
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])
