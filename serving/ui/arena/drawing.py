"""What the arena shows, as HTML; everything of people and models in it is escaped."""

from html import escape

from adapters.ui.tab import link_to
from adapters.ui.words import Language
from serving.battle_store import Battle, BattleSide
from serving.question_sets import QuestionSet
from serving.ui.arena.words import say
from serving.ui.stats import digest_badge

_CROWN = {"left": (True, False), "right": (False, True)}


def state_line(text: str, *, where: str = "", trouble: bool = False) -> str:
    kind = "state trouble" if trouble else "state"
    of_set = f'<span class="of-set">{escape(where)}</span>' if where else ""
    return f'<div class="{kind}" role="status"><span>{escape(text)}</span>{of_set}</div>'


def where_asked(battle: Battle, known: QuestionSet | None, language: Language) -> str:
    """Which question of which set it is; "" for one of one's own."""
    asked = battle.asked
    if asked.number is None:
        return ""
    if known is None:
        return say(language, "of_gone_set", title=asked.set_title, number=asked.number + 1)
    return say(language, "of_set", title=asked.set_title, number=asked.number + 1, count=len(known.questions))


def reveal(battle: Battle, choice: str, language: Language) -> str:
    """Who was who, and how fast, with the chosen side marked."""
    crowns = _CROWN.get(choice, (False, False))
    cards = [
        _card(name, side, crowned, language)
        for name, side, crowned in zip(("left", "right"), battle.sides, crowns, strict=True)
    ]
    both = link_to("compare", models=",".join(dict.fromkeys(side.adapter for side in battle.sides)))
    return (
        f'<div class="reveal" role="status"><p class="verdict">{say(language, f"won_{choice}")}'
        f' · <a href="{escape(both)}">{say(language, "compare")}</a></p>{"".join(cards)}</div>'
    )


def question_list(found: QuestionSet | None, language: Language) -> str:
    if found is None:
        return ""
    head = say(language, "set_head", title=escape(found.title), count=len(found.questions))
    items = "".join(f"<li>{escape(question)}</li>" for question in found.questions)
    return (
        f'<div class="questions" tabindex="0" role="region" aria-label="{head}"><h4>{head}</h4><ol>{items}</ol></div>'
    )


def votes_said(number: int, language: Language) -> str:
    return say(language, "one_vote") if number == 1 else say(language, "votes", n=number)


def counts_line(votes: int, pairs: int, language: Language, *, everybody: bool) -> str:
    line = say(language, "counts_all" if everybody else "counts_mine", votes=votes_said(votes, language), pairs=pairs)
    return f'<p class="counts"><b>{line}</b> {say(language, "counts_help")}</p>'


def uploaded_note(name: str, file_id: str, language: Language) -> str:
    link = escape(link_to("train", file=file_id))
    return (
        f'<p role="status">{say(language, "uploaded")}<code>{escape(name)}</code> '
        f'<a href="{link}">{say(language, "train_on_it")}</a></p>'
    )


def _card(name: str, side: BattleSide, crowned: bool, language: Language) -> str:
    facts = []
    if side.digest:
        facts.append(digest_badge(side.digest, language))
    facts.append(say(language, "tokens", n=side.tokens))
    if side.tokens_per_s is not None:
        facts.append(say(language, "speed", rate=side.tokens_per_s))
    if side.first_token_s is not None:
        facts.append(say(language, "first", ms=side.first_token_s * 1000))
    crown = f'<span class="won">{say(language, "winner")}</span>' if crowned else ""
    talk = escape(link_to("chat", model=side.adapter))
    return (
        f'<section class="card{" crowned" if crowned else ""}"><h3><span class="side">{say(language, name)}</span>'
        f"<b>{escape(side.label)}</b>{crown}</h3>"
        f'<p>{" · ".join(facts)} · <a href="{talk}">{say(language, "talk")}</a></p></section>'
    )
