"""decode-filter, prefill-filter, encode-filter: keep the endpoints of one role.

What it does
    An endpoint's role is its label `llm-d.ai/role`. Each filter keeps the roles that can do its part:

    | Role | `decode-filter` | `prefill-filter` | `encode-filter` |
    |---|---|---|---|
    | `decode` | keeps | | |
    | `prefill` | | keeps | |
    | `encode` | | | keeps |
    | `encode-prefill` | | keeps | keeps |
    | `prefill-decode`, and `both`, its old name | keeps | keeps | |
    | `encode-prefill-decode` | keeps | keeps | keeps |
    | any other | | | |
    | no label | keeps | | |

Reads
    The label `llm-d.ai/role`.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: decode-filter
    - type: queue-scorer
    schedulingProfiles:
    - name: decode
      plugins:
      - pluginRef: decode-filter
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    In nothing.
"""

from collections.abc import Callable

import numpy as np

from epp.plugin import Candidates, Mask, Pool, Request

ROLE = "llm-d.ai/role"
_EITHER = frozenset({"prefill-decode", "encode-prefill-decode", "both"})


def _having(roles: frozenset[str | None]) -> Callable[[Pool], Mask]:
    """A function for `Candidates.derived`: who has one of the roles, over the pool's slots."""

    def mask(pool: Pool) -> Mask:
        return np.array([e is not None and e.labels.get(ROLE) in roles for e in pool.endpoints], dtype=bool)

    return mask


_DECODES = _having(_EITHER | {"decode", None})
_PREFILLS = _having(_EITHER | {"prefill", "encode-prefill"})
_ENCODES = _having(frozenset({"encode", "encode-prefill", "encode-prefill-decode"}))


class DecodeFilter:
    """Keeps the endpoints that can decode, those without a role among them."""

    mandatory = True

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who can decode, shape (n,)."""
        return c.derived(_DECODES)


class PrefillFilter:
    """Keeps the endpoints that can prefill for others."""

    mandatory = True

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who can prefill, shape (n,)."""
        return c.derived(_PREFILLS)


class EncodeFilter:
    """Keeps the endpoints that can encode pictures and other media for others."""

    mandatory = True

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who can encode, shape (n,)."""
        return c.derived(_ENCODES)
