"""The rows on a terminal, with what should be known beside them."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from epp.replay.page import HEADS, shown, told
from epp.replay.study import Report


def show(report: Report, console: Console) -> None:
    """Prints a table for each workload and number of engines, and the remarks."""
    for panel in report.panels:
        title = f"{panel.workload}, {panel.engines} engines (times in ms)"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
        rows = [row for row in report.rows if (row["workload"], row["engines"]) == (panel.workload, panel.engines)]
        for key, head in HEADS.items():
            if key == "policy":
                table.add_column(head, overflow="fold")
            else:
                width = max(len(head), *(len(shown(key, row[key])) for row in rows))
                table.add_column(head, justify="right", no_wrap=True, min_width=width)
        for before, row in zip((None, *rows), rows, strict=False):
            if before is not None and row["load"] != before["load"]:
                table.add_section()
            cells = [shown(key, row[key]) for key in HEADS]
            table.add_row(*cells, style="bold green" if report.best(row) else None)
        console.print(table)
        console.print(told(panel), highlight=False, markup=False)
    for remark in report.remarks:
        console.print(f"- {remark}", highlight=False, markup=False)
