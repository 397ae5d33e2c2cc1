"""single-profile-handler: runs the only profile.

What it does
    Runs the one profile of the configuration once; its pick is the destination. A configuration with one profile and no
    profile handler gets this one; with several profiles it is an error.

Reads
    Nothing.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: queue-scorer
    - type: single-profile-handler
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    None.
"""

from epp.plugin import Request, Run, WrongParameters


class SingleProfileHandler:
    """Runs the only profile, whatever it is called."""

    def __init__(self) -> None:
        self._profile = "default"

    def bind(self, profiles: tuple[str, ...]) -> None:
        """Takes the names of the configured profiles.

        Raises:
            WrongParameters: it is not exactly one.
        """
        if len(profiles) != 1:
            message = f"single-profile-handler runs exactly one profile, there are: {', '.join(profiles)}"
            raise WrongParameters(((), message))
        self._profile = profiles[0]

    def decide(self, request: Request, run: Run) -> str:
        """Runs the profile; its name."""
        run(self._profile)
        return self._profile
