"""What vLLM's HTTP server counts about itself: requests, sizes and durations by handler, method and class of status.

The families and buckets are those of prometheus-fastapi-instrumentator, which vLLM uses; paths that only tell how the
server is (``/health``, ``/metrics`` and the like) are left out, and paths that it doesn't know count as "none".
"""

import time
from collections import defaultdict

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from epp.engine.metrics import Histogram
from epp.engine.page import Labels, buckets, counter, family, labels

UNCOUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
_HIGHR_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5),
    *(3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)
_BUCKETS = (0.1, 0.5, 1.0)


class HttpMetrics:
    """Counts of one HTTP server."""

    def __init__(self) -> None:
        """Nothing has been asked yet; families without samples are left out of the page, but for the durations."""
        self._created = time.time()
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._sizes: dict[str, defaultdict[Labels, list[int]]] = {
            "request": defaultdict(lambda: [0, 0]),
            "response": defaultdict(lambda: [0, 0]),
        }
        self._durations: defaultdict[Labels, Histogram] = defaultdict(lambda: Histogram(_BUCKETS))
        self._highr = Histogram(_HIGHR_BUCKETS)

    def middleware(self) -> Middleware:
        """What counts every answer of an application."""

        @web.middleware
        async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
            began = time.monotonic()
            try:
                response = await handler(request)
            except web.HTTPException as error:
                self._answered(request, error, time.monotonic() - began)
                raise
            self._answered(request, response, time.monotonic() - began)
            return response

        return counted

    def _answered(self, request: web.Request, response: web.StreamResponse, seconds: float) -> None:
        resource = request.match_info.route.resource
        handler = "none" if resource is None else resource.canonical
        if handler not in UNCOUNTED:
            sizes = (request.content_length or 0, response.content_length or 0)
            self.observe(handler, request.method, response.status, sizes, seconds)

    def observe(self, handler: str, method: str, status: int, sizes: tuple[int, int], seconds: float) -> None:
        """One answer; ``sizes`` are the content lengths of request and response, 0 where there was none."""
        self._requests[labels(handler=handler, method=method, status=f"{status // 100}xx")] += 1
        for which, size in zip(("request", "response"), sizes, strict=True):
            entry = self._sizes[which][labels(handler=handler)]
            entry[0] += 1
            entry[1] += size
        self._durations[labels(handler=handler, method=method)].observe(seconds)
        self._highr.observe(seconds)

    def render(self) -> str:
        """The families, in Prometheus' text format."""
        out: list[str] = []
        counter(out, "http_requests", "Requests answered.", list(self._requests.items()), self._created)
        for which, entries in self._sizes.items():
            name = f"http_{which}_size_bytes"
            out.append(f"# HELP {name} Content length of a {which}.\n# TYPE {name} summary\n")
            for own, (count, total) in entries.items():
                braces = ",".join(own)
                out.append(f"{name}_count{{{braces}}} {float(count)}\n{name}_sum{{{braces}}} {float(total)}\n")
            self._began(out, name, list(entries))
        self._histogram(out, "http_request_duration_highr_seconds", {(): self._highr})
        self._histogram(out, "http_request_duration_seconds", self._durations)
        return "".join(out)

    def _histogram(self, out: list[str], name: str, histograms: dict[Labels, Histogram]) -> None:
        out.append(f"# HELP {name} From a request to its answer's end.\n# TYPE {name} histogram\n")
        out.extend(buckets(name, own, histogram) for own, histogram in histograms.items())
        self._began(out, name, list(histograms))

    def _began(self, out: list[str], name: str, all_labels: list[Labels]) -> None:
        family(out, f"{name}_created", "gauge", "When it began.", [(own, self._created) for own in all_labels])
