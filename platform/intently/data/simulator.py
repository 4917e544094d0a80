"""The marketplace simulator: people whose wishes drift over years, and the log of what they do because of them.

A person has a handful of interests (`world.THEMES`) that begin, swell, fade and sometimes return. They come in sessions;
a session serves one interest in force at that time (by strength and season), a gift for somebody else, or idle browsing.
Each visited item runs down a funnel: impression, click, detail_view, review_read, favourite, cart, purchase. Within a
theme people choose by popularity, loved brands, price taste, latent taste shared with people like them, and by what usually
follows what. Only `true_interests` says why anything was done; it is kept aside for measuring.

Everything is drawn in numpy, a block of users at a time, so memory is bounded by `users_per_block`. The same config
gives the same tables.

Shapes: U users of a block, S interest slots, M sessions, V item visits, C candidate items of a visit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.schema import EVENT, TIMESTAMP, TRUE_INTEREST, USER, Behaviour
from intently.data.catalogue import BRANDS_PER_DEPARTMENT, TASTE_SIZE, Catalogue, draw_catalogue
from intently.data.world import THEMES

DAY = 86_400
FUNNEL = (
    Behaviour.IMPRESSION, Behaviour.CLICK, Behaviour.DETAIL_VIEW, Behaviour.REVIEW_READ,
    Behaviour.FAVOURITE, Behaviour.CART, Behaviour.PURCHASE,
)  # fmt: skip
_CODES = (*FUNNEL, Behaviour.SEARCH)
_SEARCH = len(FUNNEL)
_FOCUS, _GIFT, _IDLE = 0, 1, 2
_EVENTS_PER_SESSION = 11.1  # measured with the probabilities below
_CANDIDATES = 12
_NUM_PERSONAS = 10
_QUERIES_PER_THEME = 24


class SimulatorConfig(Config):
    """What world to simulate."""

    seed: int = Field(1, ge=0, description="same seed, same world")
    num_users: int = Field(400, ge=1, description="people")
    num_items: int = Field(800, ge=1, description="items on offer")
    events_per_user: float = Field(250.0, ge=2, description="mean number of behaviours a person leaves")
    activity_spread: float = Field(0.5, ge=0, le=2, description="sigma of the log-normal of behaviours a person; 0: all alike")
    years: float = Field(2.0, gt=0, le=20, description="length of the log")
    end: date = Field(date(2025, 9, 30), description="last day of the log")
    departments: tuple[str, ...] = Field((), description="top categories on offer; none named is all")
    zipf: float = Field(0.8, ge=0, description="exponent of item popularity within a theme")
    noise_share: float = Field(0.12, ge=0, le=1, description="share of visits of a purposeful session that are off its theme")
    gift_share: float = Field(0.04, ge=0, le=0.5, description="share of sessions that serve somebody else's wish; doubled in December")
    idle_share: float = Field(0.15, ge=0, le=0.5, description="share of sessions without a purpose")
    pictures: bool = Field(True, description="whether items carry a drawn picture, about 0.4 KB each")
    users_per_block: int = Field(256, ge=1, description="people drawn at a time; bounds memory, and decides the draw")


@dataclass(frozen=True)
class People:
    """All people and their interest slots; an unused slot has weight 0.

    Attributes:
        life_start: [N] seconds since 1970 of the first possible behaviour.
        num_sessions: [N].
        theme, start, end, weight: [N, S] interest slots; start and end in seconds since 1970.
        loved_brand: [N, departments, 2] brand indices within the department.
        price_taste: [N] 0 cheap to 1 dear.
        taste: [N, TASTE_SIZE] latent taste, drawn round that of the persona.
    """

    life_start: np.ndarray
    num_sessions: np.ndarray
    theme: np.ndarray
    start: np.ndarray
    end: np.ndarray
    weight: np.ndarray
    loved_brand: np.ndarray
    price_taste: np.ndarray
    taste: np.ndarray

    def block(self, low: int, high: int) -> People:
        """The same for people low to high."""
        return People(**{name: values[low:high] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Simulation:
    """A simulated world.

    Attributes:
        items: ITEM.
        users: USER.
        true_interests: TRUE_INTEREST.
        item_themes: [num_items] index into world.THEMES of each item, in the order of `items`.
    """

    config: SimulatorConfig
    items: pa.Table
    users: pa.Table
    true_interests: pa.Table
    item_themes: np.ndarray
    catalogue: Catalogue
    people: People

    def events(self) -> Iterator[pa.Table]:
        """EVENT rows, a block of users at a time, ordered by user and time."""
        size = self.config.users_per_block
        for block, low in enumerate(range(0, self.config.num_users, size)):
            rng = np.random.default_rng([self.config.seed, 3, block])
            people = self.people.block(low, low + size)
            yield _event_table(_draw_events(people, self.catalogue, self.config, rng), low, self.catalogue)


def simulate(config: SimulatorConfig) -> Simulation:
    """Draw a world; its events are drawn when `Simulation.events` is read.

    Raises:
        ConfigError: a department is not one of the world's.
    """
    known = {theme.categories[0] for theme in THEMES}
    for department in config.departments:
        if department not in known:
            raise ConfigError("departments", department, f"the world has {sorted(known)}")
    goods_rng = np.random.default_rng([config.seed, 1])
    catalogue = draw_catalogue(config.num_items, config.departments, config.zipf, config.pictures, goods_rng)
    people = _draw_people(config, catalogue, np.random.default_rng([config.seed, 2]))
    users = _user_table(people, config)
    truth = _truth_table(people, config)
    return Simulation(config, catalogue.items, users, truth, catalogue.theme, catalogue, people)


def intensity(theme: np.ndarray, start: np.ndarray, end: np.ndarray, weight: np.ndarray, when: np.ndarray) -> np.ndarray:
    """How strongly each interest slot pulls at a time: swells over its first fifth, fades over its last third, follows the season.

    Args:
        theme, start, end, weight: [..., S] slots.
        when: [...] seconds since 1970.
    Returns:
        [..., S], 0 outside start to end.
    """
    span = np.maximum(end - start, 1.0)
    done = (when[..., None] - start) / span
    shape = np.minimum(1.0, np.minimum(0.15 + done / 0.2, 0.1 + (1.0 - done) / 0.33))
    inside = (done >= 0) & (done <= 1)
    return np.where(inside, weight * shape, 0.0) * _season_factors()[theme, _month(when)[..., None]]


def _season_factors() -> np.ndarray:
    """[themes, 12] pull of a theme in a month: 1 without a season, 1.6 in it, 0.25 out of it."""
    table = [[(1.6 if theme.in_season(month) else 0.25) if theme.months else 1.0 for month in range(1, 13)] for theme in THEMES]
    return np.array(table)


def _month(seconds: np.ndarray) -> np.ndarray:
    """Seconds since 1970 → month, 0 to 11."""
    months = (seconds * 1e6).astype("datetime64[us]").astype("datetime64[M]")
    return months.astype(np.int64) % 12


def _period(config: SimulatorConfig) -> tuple[float, float]:
    """First and last second of the log."""
    end = datetime.combine(config.end, time(23, 0), UTC).timestamp()
    return end - config.years * 365.25 * DAY, end


def _draw_people(config: SimulatorConfig, catalogue: Catalogue, rng: np.random.Generator) -> People:
    N = config.num_users
    log_start, log_end = _period(config)
    life_start = log_start + (log_end - log_start) * np.where(rng.random(N) < 0.7, 0.0, 0.4 * rng.random(N))
    persona = rng.integers(0, _NUM_PERSONAS, N)
    theme, start, end, weight = _draw_slots(config, catalogue, persona, life_start, log_end, rng)
    spread = config.activity_spread
    wanted = config.events_per_user * np.exp(spread * rng.normal(size=N) - spread**2 / 2)
    persona_taste = 1.2 * rng.normal(size=(_NUM_PERSONAS, TASTE_SIZE))
    num_departments = len({t.categories[0] for t in THEMES})
    return People(
        life_start=life_start,
        num_sessions=np.maximum(1, np.round(wanted / _EVENTS_PER_SESSION)).astype(np.int64),
        theme=theme,
        start=start,
        end=end,
        weight=weight,
        loved_brand=rng.integers(0, BRANDS_PER_DEPARTMENT, (N, num_departments, 2)),
        price_taste=rng.random(N),
        taste=persona_taste[persona] + 0.4 * rng.normal(size=(N, TASTE_SIZE)),
    )


def _draw_slots(
    config: SimulatorConfig, catalogue: Catalogue, persona: np.ndarray, life_start: np.ndarray, log_end: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Interest slots [N, 2B]: B different themes a person (slot 0 lasts the whole life), then one possible return of each."""
    N = len(persona)
    offered = np.diff(catalogue.first) > 0
    B = min(int(3 + round(1.5 * config.years)), int(offered.sum()))
    liking = rng.gamma(0.35, size=(_NUM_PERSONAS, len(THEMES))) + 0.02
    fame = np.log(np.where(offered, np.diff(catalogue.first) ** 0.5, 1.0))
    keys = np.log(liking)[persona] + fame + rng.gumbel(size=(N, len(THEMES)))
    theme = np.argsort(np.where(offered, -keys, np.inf), axis=1, kind="stable")[:, :B]
    life = (log_end - life_start)[:, None]
    length = np.clip(life * 0.35 * np.exp(0.5 * rng.normal(size=(N, B))), np.minimum(60 * DAY, life), life)
    length = np.minimum(length, 500 * DAY)
    start = life_start[:, None] + (life - 0.4 * length) * rng.random((N, B))
    end = np.minimum(start + length, log_end)
    start[:, 0], end[:, 0] = life_start, log_end
    again = end + DAY * rng.uniform(60, 240, (N, B))
    again_end = np.minimum(again + 0.6 * length, log_end)
    returns = (rng.random((N, B)) < 0.3) & (log_end - again > 30 * DAY)
    weight = rng.gamma(4.0, 0.25, size=(N, B)) + 0.2
    return (
        np.concatenate([theme, theme], axis=1),
        np.concatenate([start, again], axis=1),
        np.concatenate([end, again_end], axis=1),
        np.concatenate([weight, np.where(returns, 0.8 * weight, 0.0)], axis=1),
    )


@dataclass(frozen=True)
class _Drawn:
    """Events of a block, ordered by user and time: [E] each; item −1 is none, query −1 is none."""

    user: np.ndarray
    item: np.ndarray
    behaviour: np.ndarray
    seconds: np.ndarray
    query: np.ndarray
    dwell: np.ndarray


def _draw_events(people: People, catalogue: Catalogue, config: SimulatorConfig, rng: np.random.Generator) -> _Drawn:
    user, when, kind, theme = _draw_sessions(people, catalogue, config, rng)  # [M]
    length = 1 + rng.poisson(3.0, len(user))
    session = np.repeat(np.arange(len(user)), length)  # [V]
    nth = np.arange(len(session)) - np.repeat(np.cumsum(length) - length, length)
    stray = (kind[session] == _IDLE) | (rng.random(len(session)) < config.noise_share)
    item, pull = _choose_items(people, catalogue, user[session], theme[session], nth, stray, rng)
    reached = _walk_funnel(kind[session], stray, pull, rng)  # [V, 7]
    dwell = np.exp(np.array([0.7, 2.0, 3.6, 3.3, 0.7, 1.0, 3.0]) + 0.6 * rng.normal(size=reached.shape))
    dwell[:, 0] = 0.0
    spent = np.where(reached, dwell + 2.0, 0.0)
    before = np.cumsum(spent, axis=1) - spent  # seconds into the visit
    visit_spent = spent.sum(axis=1)
    elapsed = np.cumsum(visit_spent) - visit_spent
    first_visit = np.cumsum(length) - length
    visit_start = when[session] + 8.0 + elapsed - elapsed[first_visit][session]
    visit, stage = np.nonzero(reached)
    searches = np.flatnonzero((kind != _IDLE) & (rng.random(len(user)) < 0.3))
    opened = reached[first_visit[searches], 1] & ~stray[first_visit[searches]]
    query = theme[searches] * _QUERIES_PER_THEME + rng.integers(0, _QUERIES_PER_THEME, len(searches))
    all_user = np.concatenate([user[session[visit]], user[searches]])
    seconds = np.concatenate([visit_start[visit] + before[visit, stage], when[searches]]).round()
    order = np.lexsort((seconds, all_user))  # stable: steps of one second keep the funnel's order
    return _Drawn(
        user=all_user[order],
        item=np.concatenate([item[visit], np.where(opened, item[first_visit[searches]], -1)])[order],
        behaviour=np.concatenate([stage, np.full(len(searches), _SEARCH)])[order],
        seconds=seconds[order],
        query=np.concatenate([np.full(len(visit), -1), query])[order],
        dwell=np.concatenate([dwell[visit, stage], np.full(len(searches), 6.0)])[order],
    )


def _draw_sessions(
    people: People, catalogue: Catalogue, config: SimulatorConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(user, start in seconds, kind, theme) of every session, [M] each, ordered by user and time."""
    user = np.repeat(np.arange(len(people.num_sessions)), people.num_sessions)
    _, log_end = _period(config)
    begun = people.life_start[user]
    day = np.floor((begun + (log_end - begun) * rng.random(len(user))) / DAY) * DAY
    hour = np.where(rng.random(len(user)) < 0.65, rng.normal(20.0, 1.5, len(user)), rng.normal(12.5, 2.0, len(user)))
    when = np.clip(day + 3600 * np.clip(hour, 6.0, 22.9), begun, log_end)
    order = np.lexsort((when, user))
    when = when[order].round()
    pull = intensity(people.theme[user], people.start[user], people.end[user], people.weight[user], when)  # [M, S]
    reach = np.cumsum(pull, axis=1)
    slot = (reach < rng.random(len(user))[:, None] * reach[:, -1:]).sum(axis=1)
    own = people.theme[user, np.minimum(slot, pull.shape[1] - 1)]
    gift_share = config.gift_share * np.where(_month(when) == 11, 2.0, 1.0)
    dice = rng.random(len(user))
    kind = np.where(dice < gift_share, _GIFT, np.where(dice > 1 - config.idle_share, _IDLE, _FOCUS))
    num_items = np.diff(catalogue.first)
    offered = np.flatnonzero(num_items)
    season = _season_factors()[offered][:, _month(when)].T * num_items[offered]  # [M, offered themes]
    other = offered[_pick_rows(season, rng.random(len(user)))]
    return user, when, kind, np.where(kind == _FOCUS, own, other)


def _pick_rows(weight: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """One column per row of [M, K] weights, by dice in 0..1."""
    reach = np.cumsum(weight, axis=1)
    return np.minimum((reach < dice[:, None] * reach[:, -1:]).sum(axis=1), weight.shape[1] - 1)


def _choose_items(
    people: People, catalogue: Catalogue, user: np.ndarray, theme: np.ndarray, nth: np.ndarray, stray: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(item, how much it appeals) of each visit, [V] each: C candidates by popularity, then the one that suits best."""
    reach = np.concatenate([[0.0], np.cumsum(catalogue.popularity)])
    low = np.where(stray, 0.0, reach[catalogue.first[theme]])
    high = np.where(stray, reach[-1], reach[catalogue.first[theme + 1]])
    dice = low[:, None] + (high - low)[:, None] * rng.random((len(user), _CANDIDATES))
    found = np.searchsorted(reach, dice, side="right") - 1
    first = np.where(stray, 0, catalogue.first[theme])
    last = np.where(stray, len(catalogue.theme), catalogue.first[theme + 1]) - 1
    candidate = np.clip(found, first[:, None], last[:, None])  # [V, C]
    loved = people.loved_brand[user[:, None], _departments()[catalogue.theme[candidate]]]  # [V, C, 2]
    brand = (loved == catalogue.brand[candidate][..., None]).any(axis=-1)
    price = (catalogue.price_place[candidate] - people.price_taste[user][:, None]) ** 2
    taste = np.einsum("vck,vk->vc", catalogue.taste[candidate], people.taste[user])
    following = catalogue.noun[candidate] == (theme + nth)[:, None] % _num_nouns()[catalogue.theme[candidate]]
    appeal = 1.2 * brand - 4.0 * price + 0.5 * taste + 1.5 * following
    best = np.argmax(appeal + rng.gumbel(size=appeal.shape), axis=1)
    rows = np.arange(len(user))
    return candidate[rows, best], appeal[rows, best]


def _departments() -> np.ndarray:
    names = sorted({theme.categories[0] for theme in THEMES})
    return np.array([names.index(theme.categories[0]) for theme in THEMES])


def _num_nouns() -> np.ndarray:
    return np.array([len(theme.nouns) for theme in THEMES])


def _walk_funnel(kind: np.ndarray, stray: np.ndarray, pull: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[V, 7] which stages of FUNNEL each visit reaches; a stage is reached only through the one it follows."""
    dice = rng.random((len(kind), len(FUNNEL)))
    gift = kind == _GIFT
    keen = 1.0 / (1.0 + np.exp(-0.4 * pull))
    click = dice[:, 1] < np.where(stray, 0.35, 0.55 + 0.4 * keen)
    detail = click & (dice[:, 2] < np.where(stray, 0.1, 0.6 + 0.3 * keen))
    review = detail & (dice[:, 3] < 0.3)
    favourite = detail & (dice[:, 4] < np.where(gift, 0.05, 0.2))
    cart = detail & (dice[:, 5] < np.where(gift, 0.6, 0.3))
    purchase = cart & (dice[:, 6] < np.where(gift, 0.8, 0.45))
    return np.stack([np.ones_like(click), click, detail, review, favourite, cart, purchase], axis=1)


def _event_table(drawn: _Drawn, first_user: int, catalogue: Catalogue) -> pa.Table:
    num = len(drawn.user)
    begins = np.flatnonzero(np.diff(drawn.user, prepend=-1))
    position = np.arange(num) - np.repeat(begins, np.diff(np.append(begins, num)))
    user_ids = _ids("u", drawn.user + first_user)
    codes = pa.array([str(code) for code in _CODES])
    seen = drawn.behaviour > 0
    return EVENT.check(
        pa.table(
            {
                "event_id": pc.binary_join_element_wise(user_ids, pa.array(position).cast(pa.string()), "-"),
                "user_id": user_ids,
                "item_id": catalogue.items["item_id"].combine_chunks().take(pa.array(drawn.item, mask=drawn.item < 0)),
                "behaviour": codes.take(pa.array(drawn.behaviour)),
                "timestamp": _timestamps(drawn.seconds),
                "position": position,
                "value": pa.nulls(num, pa.float32()),
                "query": pa.array(_query_texts()).take(pa.array(drawn.query, mask=drawn.query < 0)),
                "dwell_s": pa.array(drawn.dwell.astype(np.float32), mask=~seen),
            }
        )
    )


def _query_texts() -> list[str]:
    """_QUERIES_PER_THEME texts for each theme: a modifier and a noun, or the noun alone."""
    texts = []
    for theme in THEMES:
        for q in range(_QUERIES_PER_THEME):
            noun = theme.tag_nouns[q % len(theme.tag_nouns)]
            texts.append(noun if q % 3 == 0 else f"{theme.modifiers[q % len(theme.modifiers)]} {noun}")
    return texts


def query_themes() -> dict[str, int]:
    """Every text that may be typed → index of the theme that it serves."""
    return {text: place // _QUERIES_PER_THEME for place, text in enumerate(_query_texts())}


def _ids(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 5, "0"), "")


def _timestamps(seconds: np.ndarray) -> pa.Array:
    return pa.array((np.floor(seconds) * 1_000_000).astype(np.int64)).cast(TIMESTAMP)


def _user_table(people: People, config: SimulatorConfig) -> pa.Table:
    since = (people.life_start * 1e6).astype("datetime64[us]").astype("datetime64[M]").astype(str)
    level = np.array(["low", "middle", "high"])[np.minimum((people.price_taste * 3).astype(int), 2)]
    rows = [
        {"user_id": user_id, "attributes": [f"member since: {month}", f"price level: {price}"]}
        for user_id, month, price in zip(_ids("u", np.arange(config.num_users)).to_pylist(), since, level, strict=True)
    ]
    return USER.from_rows(rows)


def _truth_table(people: People, config: SimulatorConfig) -> pa.Table:
    """One row a used slot; strength is its mean share of the person's pull while it lasted, on a grid of half months."""
    log_start, log_end = _period(config)
    grid = np.arange(log_start, log_end, 15 * DAY) + 7 * DAY
    share = np.zeros(people.weight.shape)
    steps = np.zeros(people.weight.shape)
    for moment in grid:
        pull = intensity(people.theme, people.start, people.end, people.weight, np.full(len(people.theme), moment))
        inside = (people.start <= moment) & (moment <= people.end)
        share += np.where(inside, pull / np.maximum(pull.sum(axis=1, keepdims=True), 1e-9), 0.0)
        steps += inside
    strength = share / np.maximum(steps, 1)
    user, slot = np.nonzero(people.weight > 0)
    theme = people.theme[user, slot]
    phrases = pa.array([t.phrase for t in THEMES])
    categories = pa.array([t.category for t in THEMES])
    return TRUE_INTEREST.check(
        pa.table(
            {
                "user_id": _ids("u", user),
                "interest": phrases.take(pa.array(theme)),
                "category": categories.take(pa.array(theme)),
                "start": _timestamps(people.start[user, slot]),
                "end": _timestamps(people.end[user, slot]),
                "strength": strength[user, slot].astype(np.float32),
            }
        )
    )
