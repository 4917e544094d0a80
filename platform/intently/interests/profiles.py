"""Who a person is by what they care for: one list of interests over the whole history (RecGPT §2; DeepInterestGR, MLIM).

Listed interests are those that were read from the person's chunks, merged by meaning. Extended ones come of the interests of the person's
items: what several of them share, more than everybody's items do. A language model may add what these say together: patterns, a
lifestyle, guesses beyond. Every row names items of the history that it rests on; one without is refused.

Shapes: N drafts, P distinct pairs of person and item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import HISTORY, PROFILE, REJECT, USER_INTEREST, Behaviour
from intently.core.workspace import Artifact, Stage
from intently.data.counts import save_counts
from intently.data.flat import flat_columns
from intently.interests.asking import ask, refusal, refuse
from intently.interests.ensemble import group_by_meaning
from intently.interests.phrases import normalise
from intently.interests.usage import Usage
from intently.llm.answer import Question
from intently.llm.contract import Engine, Sampling
from intently.llm.encoder import EncoderConfig
from intently.llm.encoder import TextEncoder as SentenceEncoder
from intently.llm.engines.build import EngineConfig, cached_engine
from intently.llm.tasks import TASKS, UserProfile

STAGE = "profile"
LISTED, EXTENDED = "listed", "extended"
ITEMS = "items"
EMERGING_FROM, FADING_UNTIL = 0.6, 0.7
"""Where in a history the items of an interest begin or end, 0 to 1, to call it emerging or fading."""


class ProfileConfig(Config):
    """How profiles are put together."""

    max_interests: int = Field(24, ge=1, description="interests of a person at most, those of a language model beside them")
    min_interests: int = Field(10, ge=1, description="people with fewer are counted in the manifest")
    same_similarity: float = Field(0.85, ge=0, le=1, description="cosine from which two phrases are the same interest")
    max_items: int = Field(200, ge=1, description="a person's latest items whose interests count")
    min_items: int = Field(2, ge=1, description="items that must share an interest to extend the profile by it")
    min_lift: float = Field(1.2, ge=0, description="how much more frequent it must be among the person's items than among everybody's")
    max_evidence: int = Field(5, ge=1, description="items that are kept as evidence of one interest, the latest")
    max_asked: int = Field(16, ge=1, description="interests that a language model is shown")
    sampling: Sampling = Field(Sampling(max_tokens=600), description="how a language model's part is drawn")


@dataclass(frozen=True)
class Profiled:
    """What came of a set of people.

    Attributes:
        profiles: PROFILE rows.
        rejects: REJECT rows: interests without evidence in the history, invalid answers, drafts that rest on nothing.
        usage: what a language model's part cost.
        counts: people, and those with fewer interests than wanted.
    """

    profiles: pa.Table
    rejects: pa.Table
    usage: Usage
    counts: dict[str, int]


@dataclass(frozen=True)
class _Draft:
    """An interest before it is merged."""

    user: str
    interest: str
    kind: str
    stage: str
    reason: str
    evidence: tuple[str, ...]
    support: int
    weight: float
    model: str


def build_profiles(
    interests: pa.Table,
    history: pa.Table,
    item_interests: pa.Table | None,
    titles: dict[str, str],
    engine: Engine | None,
    encoder: TextEncoder,
    config: ProfileConfig,
) -> Profiled:
    """Put the profiles of some people together.

    Args:
        interests: USER_INTEREST rows of whole people.
        history: HISTORY rows of these people at least; evidence must be in it.
        item_interests: ITEM_INTEREST rows; None leaves the extended interests out.
        titles: item id → title, for reasons.
        engine: adds patterns, a lifestyle and guesses; None adds none.
        encoder: says which phrases mean the same.
        config: how.
    """
    people = USER_INTEREST.check(interests)["user_id"].unique().sort().to_pylist()
    own = HISTORY.check(history).filter(pc.is_in(history["user_id"], pa.array(people, pa.string())))
    touched = _touched(own)
    drafts = _listed(interests, touched, config)
    if item_interests is not None:
        drafts += _extended(touched, item_interests, titles, config)
    rows, rejects = _merged(drafts, encoder, config)
    usage = Usage()
    if engine is not None:
        more, refused, usage = _beyond(rows, engine, config)
        rows, rejects = rows + more, rejects + refused
    buckets = dict(zip(own["user_id"].to_pylist(), own["bucket"].to_pylist(), strict=True))
    place: Counter[str] = Counter()
    kept = []
    for row in sorted(rows, key=lambda row: row["user_id"]):
        kept.append(row | {"rank": place[row["user_id"]], "bucket": buckets[row["user_id"]]})
        place[row["user_id"]] += 1
    counts = {"people": len(people), "people_below_min": sum(place[user] < config.min_interests for user in people)}
    return Profiled(PROFILE.from_rows(kept), REJECT.from_rows(rejects), usage, counts)


def _touched(history: pa.Table) -> pa.Table:
    """Person and item, by time: user_id, item_id, its first and last event (0 to 1 of the person's); impressions touch nothing."""
    row, columns = flat_columns(history, ("item_ids", "behaviours"))
    counts = pc.and_(columns["item_id"].is_valid(), pc.not_equal(columns["behaviour"], str(Behaviour.IMPRESSION)))
    kept = np.flatnonzero(counts.to_numpy(zero_copy_only=False))
    size = np.bincount(row[kept], minlength=history.num_rows)
    place = np.arange(len(kept)) - (np.cumsum(size) - size)[row[kept]]
    flat = {"user_id": history["user_id"].take(pa.array(row[kept])), "item_id": columns["item_id"].take(pa.array(kept))}
    events = pa.table({**flat, "when": (place + 1) / size[row[kept]]})
    pairs = events.group_by(["user_id", "item_id"]).aggregate([("when", "min"), ("when", "max")])
    return pairs.rename_columns({"when_min": "first", "when_max": "last"}).sort_by(
        [("user_id", "ascending"), ("last", "ascending"), ("item_id", "ascending")]
    )


def _listed(interests: pa.Table, touched: pa.Table, config: ProfileConfig) -> list[_Draft]:
    """Interests of chunks, the newest first: the surer, the later they were read. One that the last chunk does not show is fading."""
    there: dict[str, set[str]] = {}
    for user, item in zip(touched["user_id"].to_pylist(), touched["item_id"].to_pylist(), strict=True):
        there.setdefault(user, set()).add(item)
    ordered = interests.sort_by([("user_id", "ascending"), ("chunk", "descending"), ("rank", "ascending")]).to_pylist()
    last: dict[str, int] = {}
    for row in ordered:
        last.setdefault(row["user_id"], row["chunk"])
    return [
        _Draft(
            user=row["user_id"],
            interest=row["interest"],
            kind=LISTED,
            stage=row["stage"] if row["chunk"] == last[row["user_id"]] else "fading",
            reason=row["reason"],
            evidence=tuple(item for item in row["evidence"] if item in there.get(row["user_id"], ()))[: config.max_evidence],
            support=1,
            weight=2.0 + row["chunk"] - row["rank"] / 100,
            model=row["model"],
        )
        for row in ordered
    ]


def _extended(touched: pa.Table, item_interests: pa.Table, titles: dict[str, str], config: ProfileConfig) -> list[_Draft]:
    """What several of a person's items share, by how much more of them do than of everybody's."""
    recent = _latest(touched, config.max_items)
    by_time = [("user_id", "ascending"), ("last", "ascending"), ("item_id", "ascending")]
    shown = recent.join(item_interests.select(["item_id", "interest"]), "item_id", join_type="inner").sort_by(by_time)
    usual = dict(zip(*shown.group_by("interest").aggregate([([], "count_all")]).to_pydict().values(), strict=True))
    sizes = dict(zip(*recent.group_by("user_id").aggregate([([], "count_all")]).to_pydict().values(), strict=True))
    grouped = shown.group_by(["user_id", "interest"], use_threads=False).aggregate(
        [("item_id", "list"), ("first", "min"), ("last", "max"), ([], "count_all")]
    )
    drafts = []
    for row in grouped.sort_by([("user_id", "ascending"), ("interest", "ascending")]).to_pylist():
        count = row["count_all"]
        lift = count / sizes[row["user_id"]] / (usual[row["interest"]] / recent.num_rows)
        if count < config.min_items or lift < config.min_lift:
            continue
        latest = tuple(reversed(row["item_id_list"]))[: config.max_evidence]
        reason = f"{count} items speak of it, such as {titles.get(latest[0], latest[0])}"
        drafts.append(
            _Draft(
                user=row["user_id"],
                interest=row["interest"],
                kind=EXTENDED,
                stage="emerging" if row["first_min"] >= EMERGING_FROM else "fading" if row["last_max"] < FADING_UNTIL else "active",
                reason=reason[:160],
                evidence=latest,
                support=count,
                weight=float(np.tanh(count * np.log(lift) / 10)),
                model=ITEMS,
            )
        )
    return drafts


def _latest(touched: pa.Table, max_items: int) -> pa.Table:
    """Each person's latest items of rows by person and time."""
    user = touched["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    size = np.bincount(user)
    place = np.arange(len(user)) - (np.cumsum(size) - size)[user]
    return touched.filter(pa.array(place >= size[user] - max_items))


def _merged(drafts: Sequence[_Draft], encoder: TextEncoder, config: ProfileConfig) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """One row a meaning, in the words of its surest draft, with the evidence of all; what has none is refused."""
    if not drafts:
        return [], []
    phrases, phrase = np.unique([normalise(draft.interest) for draft in drafts], return_inverse=True)
    _, subject = np.unique([draft.user for draft in drafts], return_inverse=True)
    weights = np.array([draft.weight for draft in drafts])
    group = group_by_meaning(subject, encoder.encode(phrases.tolist())[phrase], weights, config.same_similarity)
    members: dict[int, list[_Draft]] = {}
    for place, leader in enumerate(group.tolist()):
        members.setdefault(leader, []).append(drafts[place])
    rows: dict[str, list[tuple[tuple[float, ...], dict[str, Any]]]] = {}
    rejects = []
    for leader, found in members.items():
        first = drafts[leader]
        evidence = list(dict.fromkeys(item for draft in [first, *found] for item in draft.evidence))[: config.max_evidence]
        if not evidence:
            rejects.append(refuse(STAGE, f"{first.user}/{first.interest}", "no item of the history supports it", first.reason))
            continue
        fixed = {name: value for name, value in asdict(first).items() if name in ("interest", "kind", "stage", "reason", "model")}
        row = {"user_id": first.user, "evidence": evidence, "support": sum(draft.support for draft in found), **fixed}
        # Listed ones first, by how often and how lately they were read; then the extended ones by how far they stand out.
        worth = (0, -row["support"], -first.weight) if first.kind == LISTED else (1, 0, -first.weight)
        rows.setdefault(first.user, []).append((worth, row))
    best = []
    for user, ranked in rows.items():
        ordered = [row for _, row in sorted(ranked, key=lambda pair: pair[0])]
        best += ordered[: config.max_interests]
        beyond = ordered[config.max_interests :]
        rejects += [refuse(STAGE, f"{user}/{row['interest']}", "beyond the best supported", row["reason"]) for row in beyond]
    return best, rejects


def _beyond(
    rows: Sequence[dict[str, Any]], engine: Engine, config: ProfileConfig
) -> tuple[list[dict[str, Any]], list[dict[str, str]], Usage]:
    """What a language model reads out of the interests together; each draft has the evidence of the interests that it rests on."""
    known: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        known.setdefault(row["user_id"], []).append(row)
    shown = {user: of_user[: config.max_asked] for user, of_user in sorted(known.items())}
    questions = [Question(user, {"interests": of_user}, config.sampling) for user, of_user in shown.items()]
    outcomes, usage = ask(engine, questions, TASKS["user_profile"])
    more, rejects = [], []
    for outcome in outcomes:
        user = outcome.question_id
        if not isinstance(outcome.answer, UserProfile):
            rejects.append(refusal(STAGE, user, outcome))
            continue
        said = {normalise(row["interest"]) for row in known[user]}
        for place, draft in enumerate(outcome.answer.drafts):
            below = [shown[user][number - 1] for number in dict.fromkeys(draft.rests_on) if 1 <= number <= len(shown[user])]
            if len(below) < len(set(draft.rests_on)):
                rejects.append(refuse(STAGE, f"{user}/{place}", "rests on an interest that is not there", draft.interest))
            elif normalise(draft.interest) in said:
                rejects.append(refuse(STAGE, f"{user}/{place}", "says an interest over again", draft.interest))
            else:
                said.add(normalise(draft.interest))
                evidence = list(dict.fromkeys(item for row in below for item in row["evidence"]))[: config.max_evidence]
                stage = Counter(row["stage"] for row in below).most_common(1)[0][0]
                fixed = {"user_id": user, "evidence": evidence, "support": len(below), "stage": stage, "model": engine.name}
                more.append(fixed | {"interest": draft.interest, "kind": draft.kind, "reason": draft.reason})
    return more, rejects, usage


class ProfileWriter:
    """Worker of `map_parts`: user_interest parts → profile parts.

    Args:
        stage: takes the parts.
        interests: artifact of USER_INTEREST.
        history: artifact of HISTORY, with the same parts.
        items: artifact of ITEM.
        item_interests: artifact of ITEM_INTEREST; None where there is none.
        config: how profiles are put together.
        engine: the language model that reads interests together; None asks none.
        encoder: which text encoder.
    """

    def __init__(
        self,
        stage: Stage,
        interests: Artifact,
        history: Artifact,
        items: Artifact,
        item_interests: Artifact | None,
        config: ProfileConfig,
        engine: EngineConfig | None,
        encoder: EncoderConfig,
    ) -> None:
        self._stage, self._interests, self._history, self._config = stage, interests, history, config
        rows = items.read(columns=["item_id", "title"])
        self._titles = dict(zip(rows["item_id"].to_pylist(), rows["title"].to_pylist(), strict=True))
        self._item_interests = item_interests.read() if item_interests is not None else None
        self._engine = cached_engine(engine, stage) if engine is not None else None
        self._encoder = SentenceEncoder(encoder)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Write the profiles of one bucket."""
        if self._engine is not None:
            self._engine.begin(part)
        interests, history = self._interests.read(part), self._history.read(part)
        done = build_profiles(interests, history, self._item_interests, self._titles, self._engine, self._encoder, self._config)
        save_counts(self._stage, part, {**asdict(done.usage), **done.counts})
        self._stage.write(part, done.profiles, done.rejects)
        return {"rows": done.profiles.num_rows, "rejects": done.rejects.num_rows, **done.counts}
