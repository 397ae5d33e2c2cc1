"""The demo's tables in a narrow terminal."""

from io import StringIO

from rich.console import Console

from epp.demo.table import Progress, decisions, endpoints
from epp.demo.watch import Choice, Row, Snapshot


def rendered(table: object, width: int) -> str:
    """What a terminal of so many columns shows."""
    console = Console(file=StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def snapshot() -> Snapshot:
    """Three endpoints and one decision."""
    ports = ["37269", "37711", "37533"]
    rows = tuple(Row(f"127.0.0.1:{port}", 1234.0, 123.0, 1.0, 1234.0, 1.0, 1.0, 12345.0) for port in ports)
    totals = {f"127.0.0.1:{port}": 16.55 for port in ports}
    parts = {"queue-scorer": 2.0, "kv-cache-utilization-scorer": 1.9, "prefix-cache-scorer": 2.65}
    return Snapshot(rows, (Choice("0123456789abcdef", "127.0.0.1:37533", totals, parts, ""),))


def test_eighty_columns_show_who_and_where():
    """Addresses, the request's id, the port that was picked and all totals; only the parts are cut."""
    shown = snapshot()
    top = rendered(endpoints(Progress("picker", 1.0, 1, 1, 0), shown), 80)
    assert all(row.address in top for row in shown.rows)
    assert "…" not in top
    line = next(line for line in rendered(decisions(shown), 80).splitlines() if "01234567" in line)
    assert line.split()[:2] == ["01234567", ":37533"]
    assert line.count("16.55") == 3
    assert "2.00 queue + 1.90 kv + 2.65 prefix" in rendered(decisions(shown), 120)
