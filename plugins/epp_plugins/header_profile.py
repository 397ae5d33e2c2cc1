"""header-profile-handler: runs the profile that a header of the request names.

What it does
    Runs one profile, whose pick is the destination: the only one if there is only one, whatever the header says; else
    the one that the header names, and without the header (or with an empty one) the default. A request that names a
    profile that there isn't is refused with 400.

Reads
    The request header that `headerName` names.

Writes
    Nothing.

Parameters
    - `headerName` (`EPP-Profile`): the header, in any case.
    - `defaultProfile` (`decode`): the profile of requests without it. If there is none of that name, requests must
      have the header.

Example:
    plugins:
    - type: header-profile-handler
      parameters:
        headerName: x-tier
        defaultProfile: batch
    - type: queue-scorer
    - type: kv-cache-utilization-scorer
    schedulingProfiles:
    - name: batch
      plugins:
      - pluginRef: kv-cache-utilization-scorer
    - name: interactive
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    A name that no profile has is 400, and says which there are. There nothing runs, which is answered with 429, as if
    waiting could help.
"""

import epp.plugin
from epp.plugin import BadRequest, HeaderName, Request, Run


class HeaderProfileParameters(epp.plugin.Parameters):
    """See the module's manual."""

    header_name: HeaderName = "EPP-Profile"
    default_profile: str = "decode"


class HeaderProfileHandler:
    """Runs the profile that a header names, or a default."""

    Parameters = HeaderProfileParameters
    stability = "alpha"

    def __init__(self, parameters: HeaderProfileParameters) -> None:
        self._name, self._header = parameters.header_name, parameters.header_name.lower()
        self._default = parameters.default_profile
        self._profiles: tuple[str, ...] = ()
        self.remarks: tuple[str, ...] = ()

    def bind(self, profiles: tuple[str, ...]) -> None:
        """Takes the names of the configured profiles, and remarks if the default is none of them."""
        self._profiles = profiles
        if len(profiles) > 1 and self._default not in profiles:
            refused = f"requests without the header {self._name} are refused: no profile is called {self._default!r}"
            self.remarks = (f"{refused}, which defaultProfile names; there are: {', '.join(profiles)}",)

    def decide(self, request: Request, run: Run) -> str:
        """Runs the profile; its name."""
        profile = self._profile(request)
        run(profile)
        return profile

    def _profile(self, request: Request) -> str:
        if len(self._profiles) == 1:
            return self._profiles[0]
        named = request.headers.get(self._header) or self._default
        if named not in self._profiles:
            raise BadRequest(
                f"no profile {named!r}: the header {self._header} names one of {', '.join(self._profiles)}"
            )
        return named
