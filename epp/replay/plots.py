"""The plots of a report, as PNG: what is compared in each is the policies, under one workload on one set of engines."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from epp.replay.result import WARM_UP, Floats, Requests, Result
from epp.replay.study import Panel

_BINS = 160
_SMOOTH = 5  # bins that a point of a line is the mean of
_DPI = 110
_COLOURS = (
    *("#1f5fa8", "#d1495b", "#2a9d5c", "#e08e1b", "#7b4fa3", "#17a2b8", "#8c564b"),
    *("#c51b8a", "#6b7280", "#9aa80f", "#00429d", "#b5651d", "#4d4d4d", "#66c2a5"),
)
_STYLES = ("-", "--", ":", "-.")


def draw(panel: Panel) -> dict[str, bytes]:
    """A PNG for each of `page.KINDS`; the same bytes for the same panel."""
    return {
        "ttft": _png(_distributions(panel, "time to first token", lambda requests: requests.ttft)),
        "e2e": _png(_distributions(panel, "end-to-end latency", lambda requests: requests.e2e)),
        "load": _png(_loads(panel)),
        "hits": _png(_hits(panel)),
        "spread": _png(_spread(panel)),
    }


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _style(index: int) -> dict[str, str | float]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _STYLES[index // len(_COLOURS) % len(_STYLES)],
        "linewidth": 1.5,
    }


def _side_by_side(panel: Panel, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """An axis for each load."""
    count = len(panel.results)
    figure = Figure(figsize=(max(5.0, 3.6 * count) + 1.8, height), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axis, load in zip(axes, panel.results, strict=True):
        axis.set_title(_load(panel, load), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _load(panel: Panel, load: float) -> str:
    return f"load {load:g}: {load * panel.rate:.3g} requests/s"


def _finish(figure: Figure, axes: list[Axes]) -> None:
    """What comes when everything is drawn: a scale or a limit set before would be lost."""
    axes[0].set_ylim(bottom=0)
    for axis in axes:
        axis.grid(visible=True, which="major", color="#e5e5e5", linewidth=0.7)
    _legend(figure, axes[0])


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)


def _distributions(panel: Panel, what: str, times: Callable[[Requests], Floats]) -> Figure:
    figure, axes = _side_by_side(panel)
    for axis, policies in zip(axes, panel.results.values(), strict=True):
        for index, (name, seeds) in enumerate(policies.items()):
            values = np.sort(np.concatenate([times(result.requests.since(WARM_UP)) for result in seeds])) * 1e3
            if len(values):
                share = np.arange(1, len(values) + 1) / len(values)
                axis.plot(values, share, label=name, **_style(index))  # type: ignore[arg-type]
        axis.set_xscale("log")
        axis.set_ylim(top=1)
        axis.set_xlabel(f"{what}, ms", fontsize=8)
    axes[0].set_ylabel("share of requests", fontsize=8)
    _finish(figure, axes)
    return figure


def occupancy(result: Result, ends: Floats, edges: Floats) -> Floats:
    """How many requests are at each endpoint between their arrival and an end, shape (engines, len(edges) - 1).

    Args:
        result: the replay.
        ends: of each request, seconds, such as `result.requests.ended`.
        edges: of the bins of time; the count is that at the end of a bin.
    """
    requests = result.requests
    served = requests.served
    where = requests.endpoint[served]
    engines = np.arange(result.engines + 1) - 0.5
    times = np.concatenate([[-np.inf], edges[1:]])
    came = np.histogram2d(where, requests.arrived[served], (engines, times))[0]
    gone = np.histogram2d(where, ends[served], (engines, times))[0]
    return np.asarray((came - gone).cumsum(axis=1))


def _edges(result: Result, span: float) -> Floats:
    start = float(result.requests.arrived.min())
    return np.linspace(start, start + max(span, 1e-9), _BINS + 1)


_MAP = {"aspect": "auto", "vmin": 0, "cmap": "YlGnBu", "interpolation": "nearest"}


def _loads(panel: Panel) -> Figure:
    """A map for each policy and load: endpoints from top to bottom, time from left to right."""
    rows, columns = len(next(iter(panel.results.values()))), len(panel.results)
    figure = Figure(figsize=(max(5.0, 3.6 * columns) + 1.8, 0.5 + 1.15 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for column, (load, policies) in enumerate(panel.results.items()):
        first = [seeds[0] for seeds in policies.values()]
        span = max(result.span for result in first)
        maps = [occupancy(result, result.requests.ended, _edges(result, span)) for result in first]
        highest = max(1.0, *(float(each.max()) for each in maps))
        for row, (name, result, each) in enumerate(zip(policies, first, maps, strict=True)):
            axis = axes[row][column]
            extent = (0.0, span, result.engines - 0.5, -0.5)
            image = axis.imshow(each, extent=extent, vmax=highest, **_MAP)
            axis.tick_params(labelsize=7)
            if column == 0:
                axis.set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
        axes[0][column].set_title(_load(panel, load), fontsize=9)
        axes[-1][column].set_xlabel("seconds", fontsize=8)
        bar = figure.colorbar(image, ax=axes[:, column], pad=0.01, aspect=30 * max(1, rows / 4))
        bar.ax.tick_params(labelsize=7)
        bar.set_label("requests at the endpoint", fontsize=7)
    return figure


def _hits(panel: Panel) -> Figure:
    names = list(next(iter(panel.results.values())))
    figure = Figure(figsize=(7.5, 1.0 + 0.42 * len(names)), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(panel.results)
    for index, (load, policies) in enumerate(panel.results.items()):
        ratios = [
            float(np.mean([result.requests.since(WARM_UP).hit_ratio for result in seeds]))
            for seeds in policies.values()
        ]
        places = np.arange(len(names)) + (index - (len(panel.results) - 1) / 2) * height
        shade = 0.85 - 0.55 * (index + 1) / len(panel.results)
        axis.barh(places, ratios, height * 0.92, label=f"load {load:g}", color=(shade, shade + 0.1, 0.72))
    axis.axvline(panel.ideal_hit_ratio, color="#d1495b", linestyle="--", linewidth=1.2, label="one endless cache")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(1.0, panel.ideal_hit_ratio))
    axis.set_xlabel("share of prompt tokens found in the engines' prefix caches", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(figure, axis)
    return figure


def _spread(panel: Panel) -> Figure:
    """The endpoint with the most requests before their first token, less the one with the fewest, over time."""
    figure, axes = _side_by_side(panel, 3.0)
    for axis, policies in zip(axes, panel.results.values(), strict=True):
        for index, (name, seeds) in enumerate(policies.items()):
            result = seeds[0]
            edges = _edges(result, result.span)
            waiting = occupancy(result, result.requests.first_token, edges)
            apart = waiting.max(axis=0) - waiting.min(axis=0)
            smooth = np.convolve(apart, np.full(_SMOOTH, 1 / _SMOOTH), mode="same")
            axis.plot(edges[1:] - edges[0], smooth, label=name, **_style(index))  # type: ignore[arg-type]
        axis.set_xlabel("seconds", fontsize=8)
    axes[0].set_ylabel("requests without a first token,\nfullest endpoint less emptiest", fontsize=8)
    _finish(figure, axes)
    return figure
