"""The report as one HTML page that needs nothing beside itself."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape

from epp.replay.result import FIGURES, Row
from epp.replay.study import Panel, Report

KINDS = {
    "ttft": "Time to first token",
    "e2e": "End-to-end latency",
    "load": "Load over time, by endpoint",
    "hits": "Prefix cache hits",
    "spread": "Queue spread",
}
"""The plots, by the name that they have in `plots.draw`."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2530; background: #fff; max-width: 82rem; margin: 2rem auto;
  padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; font-weight: 600 }
p { margin: .3rem 0; max-width: 60rem } .note { color: #56616e }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap } th { font-weight: 600; font-size: .85rem }
th.text, td.text { text-align: left } thead tr { border-bottom: 2px solid #c9d1d9 }
tr.first td { border-top: 1px solid #c9d1d9 } tr.best td { background: #eaf5ee } td.best { font-weight: 600 }
img { max-width: 100%; height: auto; display: block } ul { margin: .4rem 0 }
"""

HEADS = {
    "load": "load",
    "policy": "policy",
    "ttft_p50_ms": "TTFT p50",
    "ttft_p90_ms": "p90",
    "ttft_p99_ms": "p99",
    "e2e_p90_ms": "E2E p90",
    "itl_p90_ms": "ITL p90",
    "hit_ratio": "hits",
    "max_over_mean_load": "max/mean",
}
"""The columns of a table, by the key of a row; times are milliseconds."""


def page(report: Report, plots: Mapping[tuple[str, int], Mapping[str, bytes]]) -> str:
    """The page.

    Args:
        report: what was found.
        plots: of each workload and number of engines, by kind; empty for none.
    """
    sections = [_section(report, panel, plots.get((panel.workload, panel.engines), {})) for panel in report.panels]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>epp replay</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>epp replay</h1>\n{_about(report)}",
            *sections,
            "</body>\n</html>\n",
        ]
    )


def _about(report: Report) -> str:
    plan = report.plan
    engines = plan.engines[0]
    speeds = "" if set(engines.speeds) == {1.0} else f", speeds {', '.join(f'{s:g}' for s in engines.speeds)} in turn"
    seeds = f"{len(plan.seeds)} seeds from {plan.seeds[0]}" if len(plan.seeds) > 1 else f"seed {plan.seeds[0]}"
    what = (
        f"<p>Simulated engines: {escape(engines.profile)}{speeds}. {len(plan.policies)} configurations, {seeds}. "
        "The decisions are the picker's own code and plugins; time is virtual.</p>"
    )
    how = (
        "<p>Times are milliseconds, those of the requests after the first tenth. Hits are the share of prompt tokens "
        "found in the engines' prefix caches; max/mean is the load of the fullest endpoint over the mean, by the "
        "requests that are there on the average. In each case the lowest TTFT p90 is marked.</p>"
    )
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in report.remarks)
    return "\n".join([what, how, f"<ul>{remarks}</ul>" if remarks else ""])


def _section(report: Report, panel: Panel, plots: Mapping[str, bytes]) -> str:
    rows = [row for row in report.rows if (row["workload"], row["engines"]) == (panel.workload, panel.engines)]
    parts = [f"<h2>{escape(panel.workload)}, {panel.engines} engines</h2>", f"<p>{escape(told(panel))}</p>"]
    parts.append(_table(report, rows))
    for kind, png in plots.items():
        source = f"data:image/png;base64,{b64encode(png).decode()}"
        name = f"{KINDS[kind]}: {panel.workload}, {panel.engines} engines"
        parts.append(f'<h3>{KINDS[kind]}</h3>\n<img alt="{escape(name)}" src="{source}">')
    return "\n".join(parts)


def told(panel: Panel) -> str:
    """What loads are shares of, in a sentence."""
    if panel.capacity is None:
        return f"A load of 1 is {panel.rate:.4g} requests a second, as was said."
    found = panel.capacity
    return (
        f"A load of 1 is {found.rate:.4g} requests a second: the most at which the best configuration, {found.policy}, "
        f"keeps its TTFT p90 within five times the unloaded {found.unloaded * 1e3:.4g} ms."
    )


def _table(report: Report, rows: list[Row]) -> str:
    heads = "".join(f"<th{_text(key)}>{escape(head)}</th>" for key, head in HEADS.items())
    lines, before = [], None
    for row in rows:
        marks = [name for name, is_so in (("first", row["load"] != before), ("best", report.best(row))) if is_so]
        before = row["load"]
        cells = "".join(f"<td{_text(key)}>{escape(shown(key, row[key]))}</td>" for key in HEADS)
        lines.append(f'<tr class="{" ".join(marks)}">{cells}</tr>')
    head, body = f"<thead><tr>{heads}</tr></thead>", "\n".join(lines)
    return f'<div class="wide"><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _text(key: str) -> str:
    return ' class="text"' if key == "policy" else ""


def shown(key: str, value: float | str | None) -> str:
    """A cell: times without decimals where they have none to give, ratios with two."""
    if value is None:
        return "-"
    if key not in FIGURES or isinstance(value, str):
        return f"{value:g}" if isinstance(value, float | int) else value
    if key.endswith("_ms"):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:.2f}"
