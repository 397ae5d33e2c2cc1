"""disaggregatedset-rollout-screener: keeps the stages of a request within one revision while a new one rolls out.

What it does
    Endpoints that prefill and decode for each other have to be of one revision. For each request one revision is drawn,
    and only its endpoints are candidates, whatever profile runs. A revision takes part if every required role has an
    endpoint in play; its chance is its weight among those:

    - `sum`: its endpoints of the required roles.
    - `max-role`: its endpoints of the role that has most endpoints over all of these revisions (of equal ones the first
      in the list).
    - `disabled`: no revision is drawn.

    A selector of the mode `strict` keeps the endpoints whose label says what the request's header says, if it has one;
    where that is the revision's label, no other is drawn, but its roles have to be there. One of the mode `prefer`
    keeps everybody: put a `header-label-affinity-scorer` beside it. Either tells the client, in the header of the same
    name, what the label of the endpoint that answers says, so that the next stage can send it along.

    If nobody is left the client gets 503.

Reads
    The endpoints' labels, and the request's headers.

Writes
    The selectors' response headers.

Parameters
    - `scope`: `labelSelector`, the endpoints whose roles count, as in `app=a,tier in (x,y),!old`; required.
    - `headerSelectors` ([]): each `name`, `headerName`, `labelKey` and `mode`, strict or prefer.
    - `revisionGating`: required. `mode`; `requireRoles`, with `values`, the roles that a revision needs (required
      unless disabled); `revisionLabelKey` (disaggregatedset.x-k8s.io/revision); `roleLabelKey`
      (disaggregatedset.x-k8s.io/role); `requiredRoles`, deprecated, a list for `requireRoles.values`.

Example:
    plugins:
    - type: disaggregatedset-rollout-screener
      parameters:
        scope:
          labelSelector: disaggregatedset.x-k8s.io/name=chat
        headerSelectors:
        - name: revision
          headerName: x-disagg-revision
          labelKey: disaggregatedset.x-k8s.io/revision
          mode: strict
        revisionGating:
          mode: max-role
          requireRoles:
            values:
            - prefill
            - decode
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    - What counts is an endpoint in play, one port of a pod, and not a pod that Kubernetes calls ready: who can't be
      reached serves nobody.
    - Only revisions that have a candidate are drawn, so that a subset of the data plane's doesn't end in a 503.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

import epp.plugin
from epp.plugin import (
    Candidates,
    Codes,
    Context,
    Decision,
    Endpoint,
    Floats,
    HeaderName,
    Mask,
    Pool,
    Request,
    WrongParameters,
)

_TERM = re.compile(
    r"\s*(?:(?P<not>!)\s*(?P<absent>[\w./-]+)"
    r"|(?P<key>[\w./-]+)(?:\s*(?P<operator>==|=|!=)\s*(?P<value>[\w.-]*)"
    r"|\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)",
    re.ASCII,
)

Labels = Mapping[str, str]


def parsed(selector: str) -> Callable[[Labels], bool]:
    """A selector in Kubernetes' short form as a test of labels.

    Raises:
        ValueError: it can't be read.
    """
    tests: list[Callable[[Labels], bool]] = []
    at = 0
    while at < len(selector):
        match = _TERM.match(selector, at)
        if match is None or match.end() == at:
            raise ValueError(f"the selector can't be read from {selector[at:]!r} on")
        tests.append(_term(match))
        at = match.end()
    return lambda labels: all(test(labels) for test in tests)


def _term(match: re.Match[str]) -> Callable[[Labels], bool]:
    key = match["key"] or match["absent"]
    if match["not"]:
        return lambda labels: key not in labels
    if match["operator"] is None and match["set"] is None:
        return lambda labels: key in labels
    values = {value.strip() for value in (match["values"] or match["value"] or "").split(",")}
    if match["operator"] == "!=" or match["set"] == "notin":
        return lambda labels: labels.get(key) not in values
    return lambda labels: labels.get(key) in values


class Scope(epp.plugin.Parameters):
    """`scope`."""

    label_selector: Annotated[str, Field(min_length=1), AfterValidator(lambda text: parsed(text) and text)]


class HeaderSelector(epp.plugin.Parameters):
    """One entry of `headerSelectors`."""

    name: str = Field(min_length=1)
    header_name: HeaderName
    label_key: str = Field(min_length=1)
    mode: Literal["strict", "prefer"]


class Roles(epp.plugin.Parameters):
    """`revisionGating.requireRoles`."""

    values: tuple[str, ...] = ()


class Gating(epp.plugin.Parameters):
    """`revisionGating`."""

    mode: Literal["sum", "max-role", "disabled"]
    require_roles: Roles = Roles()
    required_roles: tuple[str, ...] | None = Field(default=None, deprecated='write "requireRoles", with "values"')
    revision_label_key: str = Field(default="disaggregatedset.x-k8s.io/revision", min_length=1)
    role_label_key: str = Field(default="disaggregatedset.x-k8s.io/role", min_length=1)

    @model_validator(mode="after")
    def _some_roles(self) -> "Gating":
        if self.mode != "disabled" and not self.roles:
            raise WrongParameters((("requireRoles", "values"), "must name the roles that a revision needs"))
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """What a revision needs; the old spelling counts where the new one says nothing."""
        return self.require_roles.values or dict(self)["required_roles"] or ()

    def effective(self) -> Self:
        """In the new spelling."""
        return self.model_copy(update={"require_roles": Roles(values=self.roles), "required_roles": None})


class DisaggregatedSetRolloutScreener:
    """Keeps the stages of a request within one revision while a new one rolls out."""

    mandatory = True

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        scope: Scope
        header_selectors: tuple[HeaderSelector, ...] = ()
        revision_gating: Gating

        def effective(self) -> Self:
            """In the new spelling."""
            return self.model_copy(update={"revision_gating": self.revision_gating.effective()})

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._gating = parameters.revision_gating
        self._selectors = parameters.header_selectors
        self._strict = [selector for selector in self._selectors if selector.mode == "strict"]
        self._pool, self._random = context.pool, context.random
        selects = parsed(parameters.scope.label_selector)

        def in_scope(pool: Pool) -> Mask:
            return np.array([e is not None and selects(e.labels) for e in pool.endpoints], dtype=bool)

        self._in_scope = in_scope  # one object: the pool's cache is keyed by it

    def screen(self, request: Request, c: Candidates) -> Mask:
        """The endpoints of one revision, shape (n,)."""
        kept: Mask = np.ones(len(c), dtype=bool)
        named = None
        for selector in self._strict:
            value = request.headers.get(selector.header_name)
            if value:
                kept &= c.label(selector.label_key) == c.code(selector.label_key, value)
                named = value if selector.label_key == self._gating.revision_label_key else named
        if self._gating.mode == "disabled":
            return kept
        revisions = c.label(self._gating.revision_label_key)
        kept &= revisions == self._drawn(c, revisions[kept & (revisions >= 0)], named)
        return kept

    def _drawn(self, c: Candidates, present: Codes, named: str | None) -> int:
        """The code of the revision that the request named, or of one by chance; -2 if there is none."""
        weights = self._weights()
        allowed = np.zeros(len(weights))
        allowed[present] = 1.0
        if named is not None:
            code = c.code(self._gating.revision_label_key, named)
            return code if code >= 0 and weights[code] > 0 else -2
        chances = np.cumsum(weights * allowed)
        if not len(chances) or not chances[-1]:
            return -2
        return int(np.searchsorted(chances, self._random.random() * chances[-1], side="right"))

    def _weights(self) -> Floats:
        """By code of the revision, 0 where a role is missing."""
        pool, gating = self._pool, self._gating
        slots = pool.eligible_slots()
        slots = slots[pool.derived(self._in_scope)[slots]]
        codes, revisions = pool.label_codes(gating.revision_label_key)
        roles, by_role = pool.label_codes(gating.role_label_key)
        own, role_of = codes[slots], roles[slots]
        counts = np.array(
            [
                np.bincount(own[(own >= 0) & (role_of == by_role.get(role, -2))], minlength=len(revisions))
                for role in gating.roles
            ],
            dtype=np.float64,
        )
        covered = (counts > 0).all(axis=0)
        counts *= covered
        weights = counts.sum(axis=0) if gating.mode == "sum" else counts[counts.sum(axis=1).argmax()]
        return np.asarray(weights, dtype=np.float64)

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Mapping[str, str]:
        """What the selectors' labels say of who has answered."""
        found = {selector.header_name: served.labels.get(selector.label_key) for selector in self._selectors}
        return {name: value for name, value in found.items() if value}
