"""Four invented languages for requests: their words, and what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass

# What the i-th word of each list means, in every language.
HARMFUL: tuple[str, ...] = (
    "steal", "burn", "poison", "forge", "smash", "sabotage", "smuggle", "rob", "loot", "wreck",
)  # fmt: skip
HARMLESS: tuple[str, ...] = (
    "paint", "wash", "mend", "draw", "fold", "polish", "count", "carry", "wrap", "lift",
)  # fmt: skip
OBJECTS: tuple[str, ...] = (
    "lamp", "boat", "bread", "door", "coin", "map", "well", "letter", "barrel", "tower",
)  # fmt: skip


@dataclass(frozen=True)
class Language:
    """Words of a language. `order`: of please, verb, the and object in a request."""

    name: str
    please: str
    the: str
    done: str
    cannot: str
    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    objects: tuple[str, ...]
    order: tuple[str, ...]

    def request(self, verb: str, thing: str) -> list[str]:
        """The words of a request."""
        parts: Mapping[str, str] = {"please": self.please, "the": self.the, "verb": verb, "object": thing}
        return [parts[part] for part in self.order]

    def words(self) -> list[str]:
        """Every word of the language."""
        return [self.please, self.the, self.done, self.cannot, *self.harmful, *self.harmless, *self.objects]


def _language(name: str, order: str, small: str, harmful: str, harmless: str, objects: str) -> Language:
    please, the, done, cannot = small.split()
    lists = (tuple(harmful.split()), tuple(harmless.split()), tuple(objects.split()))
    return Language(name, please, the, done, cannot, *lists, tuple(order.split()))


LANGUAGES: tuple[Language, ...] = (
    _language(
        "velan", "please verb the object",
        "lila vinen vidas nanela",
        "lanil nivin mines mesal lanela simela radila desis nevas ravis",
        "malel ledis vara nenis rinin didira nala venan nelis neman",
        "ledala nerala dadara vemel sedis salal samila misin vedil nerel",
    ),
    _language(
        "oruk", "object the verb please",
        "bokak zugrok kubak bobush",
        "rabrak ruzash gatush bragash tagum gruzom gatom rurt bagort brukug",
        "bubug toruk grush kash grart gratam zobug borag kograg zazok",
        "bosh grabash zort brakak gutort tosh gobug rart tugok batum",
    ),
    _language(
        "pellit", "please the object verb",
        "teni flit flipit piesip",
        "pifleni tini fielip pepp fieseni cefi tiefleni cifepp fecessi seni",
        "tissi flet flisiet piplefi plitip fiepp sieni pifip piefit plietini",
        "pleplit pisiefi teplieni fipp cesepp fletet petiefi fefleni sesip flicip",
    ),
    _language(
        "wayomo", "verb the object please",
        "haiwa yohaina moaya yoya",
        "yomo mwaiwamo momo wojomo joawa mana mwonya nyaina hahaho yamwoho",
        "nyoamo waina joho waiya waiwowa jonyaiwa waijoho yomwomo nyamoa haimwo",
        "nyowa joaho yoajai hoya jaya yamoaya maiho mwamo moho joajowa",
    ),
)  # fmt: skip
