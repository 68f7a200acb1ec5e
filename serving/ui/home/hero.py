"""What this is, with a picture: one performer, several faces put on in turn. HTML and SVG of our own."""

from collections.abc import Mapping

from adapters.portrait import BASE_PORTRAIT, portrait_uri
from adapters.settings import BUNDLED
from adapters.ui.tab import link_to

PORTRAITS = BUNDLED / "portraits"
ON_STAGE = ("wukong", "daiyu", "niangniang", "halyard")  # whose faces the picture shows, after the base's own
WAYS = (("talk", "chat"), ("compare", "compare"), ("train", "train"))  # to begin, and the tab each leads to
TURN_S = 2.4  # how long a face stays on


def hero(words: Mapping[str, str]) -> str:
    """The first thing on the page, in the language of `words`: what, how, picture, and two for each of WAYS."""
    ways = "".join(
        f'<a href="{link_to(tab)}" id="home-{way}"><b>{words[way]}</b><span>{words[f"{way}_what"]}</span></a>'
        for way, tab in WAYS
    )
    return (
        f'<section class="hero"><div><h2>{words["what"]}</h2><p class="how">{words["how"]}</p><nav>{ways}</nav></div>'
        f"{_picture(words['picture'])}</section>"
    )


def _picture(alt: str) -> str:
    """Faces that replace each other, the base's first. Still where motion is not wanted."""
    sources = [portrait_uri(path) for path in (BASE_PORTRAIT, *(PORTRAITS / f"{name}.svg" for name in ON_STAGE))]
    images = "".join(
        f'<img src="{uri}" alt="" style="animation-delay: {number * TURN_S:.1f}s">'
        for number, uri in enumerate(sources)
    )
    return (
        f'<div class="stage" role="img" aria-label="{alt}" style="--turn: {len(sources) * TURN_S:.1f}s">'
        f'<div class="curtain"></div><div class="faces">{images}</div></div>'
    )
