"""The standing of a canary's trial: the votes on the canary and the live model, and what the votes show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bot.i18n import Say
from storage.canaries import TrialVote
from storage.counts import Approval
from storage.learning_records import Trial, Trust
from storage.ledger import Ledger
from storage.translatable_reason import Reason
from training.evidence.sequential import ENOUGH, HORIZON_DAYS, HORIZON_VOTES, MARGIN, Evidence, Vote, canary_evidence

HINT: Final = 3.0
"""The evidence at or above which the votes are reported as leaning to one side."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The standing of a running trial: the votes on the canary and the live model, and what the votes show.

    `won` is the number of duels that the canary has won, out of `duels` decided ones.
    """

    trial: Trial
    canary: Approval
    live: Approval
    evidence: Evidence
    won: int = 0
    duels: int = 0

    @property
    def votes(self) -> int:
        """The number of votes on the canary and the live model, plus the number of duels."""
        return self.canary.votes + self.live.votes + self.duels


async def standing(ledger: Ledger, trust: Trust) -> Standing | None:
    """Return the standing of the running trial, or None if no trial is running."""
    trial = await ledger.canaries.running()
    if trial is None:
        return None
    votes = await ledger.canaries.votes(trial, trust)
    won = await ledger.duels.won(trial, trust)
    evidence = canary_evidence((Vote(str(each.rater), each.canary, each.liked) for each in votes), MARGIN, won)
    return Standing(trial, _approval(votes, canary=True), _approval(votes, canary=False), evidence, sum(won), len(won))


def _approval(votes: list[TrialVote], *, canary: bool) -> Approval:
    found = [each.liked for each in votes if each.canary is canary]
    return Approval(sum(found), len(found) - sum(found))


def with_votes(found: Standing, finding: Reason) -> Reason:
    """Return a finding followed by the votes that it is based on."""
    return Reason(
        "{finding} Approval since the trial began: {canary} of {votes} votes, live model: {live} of {live_votes}.",
        finding=finding,
        canary=_share(found.canary),
        votes=found.canary.votes,
        live=_share(found.live),
        live_votes=found.live.votes,
    )


def _share(approval: Approval) -> str:
    return f"{100 * approval.share:.0f} %" if approval.votes else "–"


def standing_text(found: Standing, say: Say) -> str:
    """Describe the standing of a trial briefly, without numbers if there are no votes yet."""
    evidence = found.evidence
    if evidence.harm >= HINT and evidence.harm > evidence.no_worse:
        finding = Reason("It looks worse, but that may still be chance.")
    elif evidence.no_worse >= HINT:
        finding = Reason("It looks no worse, but more votes are needed to be sure.")
    else:
        finding = Reason("Too few votes to tell.")
    share = f"{100 * found.trial.share:.0f}"
    about = say(
        "{model} is a canary: it answers in {share} % of the conversations.", model=found.trial.model, share=share
    )
    rule = say(
        "Evidence comes only from people who rate answers from both models. Without a decision after {days} days or "
        "{votes} votes, the canary goes live.",
        days=f"{HORIZON_DAYS:.0f}",
        votes=HORIZON_VOTES,
    )
    if not found.votes:
        return say.joined(about, say(finding), rule)
    evidences = say(
        "Evidence ({enough} needed to decide): {harm} that it is worse, {no_worse} that it is no worse.",
        enough=f"{ENOUGH:.0f}",
        harm=f"{min(evidence.harm, 999):.1f}",
        no_worse=f"{min(evidence.no_worse, 999):.1f}",
    )
    duels = [say("It won {won} of {duels} comparisons.", won=found.won, duels=found.duels)] if found.duels else []
    return say.joined(about, say(with_votes(found, finding)), *duels, evidences, rule)
