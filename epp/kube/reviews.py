"""Whether somebody may read our metrics: their token is shown to the API server, and so is what they ask for.

A verdict is kept for a while, so that a Prometheus that scrapes every few seconds costs two requests a minute. Of the
token only a hash is kept.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

from epp.kube.client import ACCESS_REVIEWS, TOKEN_REVIEWS, Api, Unreachable

Key = tuple[bytes, str, str]
"""The token's hash, path, and verb."""

Verdict = Literal["allowed", "unauthenticated", "forbidden"]

_MOST = 1000


class Reviewer:
    """Asks by TokenReview and SubjectAccessReview.

    Args:
        api: the API server; it asks for `create` of both kinds of review (ClusterRole system:auth-delegator).
        allowed_for: seconds that a good verdict is kept.
        denied_for: seconds that a bad one is.
        at_once: questions under way: whoever invents tokens must not keep the API server busy.
        now: the clock.
    """

    def __init__(
        self,
        api: Api,
        *,
        allowed_for: float = 60.0,
        denied_for: float = 10.0,
        at_once: int = 32,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._allowed_for, self._denied_for = allowed_for, denied_for
        self._at_once = at_once
        self._now = now
        self._known: OrderedDict[Key, tuple[Verdict, float]] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[Verdict]] = {}

    def __repr__(self) -> str:
        return f"<Reviewer: {len(self._known)} verdicts>"

    async def verdict(self, token: str, path: str, verb: str = "get") -> Verdict:
        """Whether the bearer of the token may do this to a path of ours that is no resource.

        Raises:
            ApiError: the API server refuses the question.
            Unreachable: it can't be asked, or too much is being asked already.
        """
        key = (hashlib.sha256(token.encode()).digest(), path, verb)
        known = self._known.get(key)
        if known is not None and self._now() < known[1]:
            return known[0]
        task = self._asking.get(key)
        if task is None:  # who comes meanwhile waits for the same answer
            if len(self._asking) >= self._at_once:
                raise Unreachable(f"{self._at_once} others are being asked for")
            task = self._asking[key] = asyncio.create_task(self._ask(token, path, verb))
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(task)

    def _asked(self, key: Key, done: asyncio.Task[Verdict]) -> None:
        """Keeps the answer, though whoever has asked may have gone."""
        del self._asking[key]
        if not done.cancelled() and done.exception() is None:
            self._keep(key, done.result())

    def _keep(self, key: Key, verdict: Verdict) -> None:
        self._known[key] = (verdict, self._now() + (self._allowed_for if verdict == "allowed" else self._denied_for))
        self._known.move_to_end(key)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    async def _ask(self, token: str, path: str, verb: str) -> Verdict:
        review = _review(TOKEN_REVIEWS.group_version, "TokenReview", {"token": token})
        status = (await self._api.create(TOKEN_REVIEWS.path(), review)).get("status") or {}
        if not status.get("authenticated"):
            return "unauthenticated"
        user = status.get("user") or {}
        who = {"user": user.get("username", ""), "uid": user.get("uid", "")}
        who |= {"groups": user.get("groups") or [], "extra": user.get("extra") or {}}
        spec = {**who, "nonResourceAttributes": {"path": path, "verb": verb}}
        review = _review(ACCESS_REVIEWS.group_version, "SubjectAccessReview", spec)
        status = (await self._api.create(ACCESS_REVIEWS.path(), review)).get("status") or {}
        return "allowed" if status.get("allowed") and not status.get("denied") else "forbidden"


def _review(version: str, kind: str, spec: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "spec": spec}
