"""What was decided and why: the score matrix itself with the masks, rendered only when somebody asks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from epp.errors import Internal
from epp.plugin import Candidates, Floats, Pick, Plugged, Profile

ENCODES = ("encode",)
"""The profiles that choose who encodes media, where the profile handler names none."""


@dataclass(slots=True, eq=False)
class Stage:
    """One run of one profile, over the endpoints that the decision began with.

    Attributes:
        profile: the profile that ran.
        started: the candidates that it began with.
        kept: each filter that ran with the candidates that it left.
        candidates: who was left to be scored.
        raw: what each scorer said, shape (scorers, n); rows of plugins that failed are NaN.
        counted: `raw` as it entered the totals, clamped to [0, 1].
        stood_in: the scorers for which the in-flight counts stood in, because nobody had fresh metrics.
        totals: the weighted sums as the picker saw them, shape (n,).
        pick: None if nobody was left.
        failed: names of the plugins that failed or gave something useless, and were left out. Where the picker is among
            them, the pick is the highest total with the fewest requests in flight.
    """

    profile: Profile
    started: Candidates
    candidates: Candidates
    kept: list[tuple[Plugged, Candidates]] = field(default_factory=list)
    raw: Floats | None = None
    counted: Floats | None = None
    stood_in: tuple[int, ...] = ()
    totals: Floats | None = None
    pick: Pick | None = None
    failed: set[str] = field(default_factory=set)

    @property
    def emptied_by(self) -> Plugged | None:
        """The filter that left nobody."""
        return self.kept[-1][0] if self.kept and not len(self.candidates) else None


@dataclass(slots=True, eq=False)
class Decision:
    """The answer for one request, and its explanation; it never refers to the request.

    Attributes:
        candidates: those that the decision began with, with every column that was read or produced.
        stages: the profiles' runs, in order.
        picks: by profile name, of those that found somebody.
        handler_result: the primary profile's name as the profile handler gave it.
        encodes: the profiles that choose who encodes media, see `epp.plugin`.
    """

    candidates: Candidates
    stages: list[Stage] = field(default_factory=list)
    handler_result: str | None = None
    encodes: Collection[str] = ENCODES

    @property
    def picks(self) -> Mapping[str, Pick]:
        """The pick of every profile that found somebody; of several runs the last."""
        return {stage.profile.name: stage.pick for stage in self.stages if stage.pick is not None}

    @property
    def computing(self) -> Mapping[str, Pick]:
        """Of `picks` those at whose first endpoint a part of the prompt is computed."""
        return {name: pick for name, pick in self.picks.items() if name not in self.encodes}

    @property
    def encoding(self) -> Mapping[str, Pick]:
        """Of `picks` those whose endpoints encode media."""
        return {name: pick for name, pick in self.picks.items() if name in self.encodes}

    @property
    def primary(self) -> Pick:
        """The pick whose endpoints are the destination."""
        pick = self.found()
        if pick is None:
            raise Internal("the decision has no pick")
        return pick

    def found(self) -> Pick | None:
        """The primary profile's pick, None if there is none."""
        for stage in reversed(self.stages):
            if stage.profile.name == self.handler_result:
                return stage.pick
        return None

    def emptied_by(self) -> Plugged | None:
        """The filter that left nobody in the primary profile, or else in the last one that found nobody."""
        failed = [stage for stage in self.stages if stage.pick is None]
        named = [stage for stage in failed if stage.profile.name == self.handler_result]
        for stage in named or failed[-1:]:
            return stage.emptied_by
        return None
