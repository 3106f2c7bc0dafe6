"""The words of the `styles` task: which word may stand in which slot of a sentence frame.

No plain slot holds a word that contains a behaviour marker, and no sentence of one style opens with a word
that opens sentences of the other; `styles.py` checks both when it is imported.
"""

from collections.abc import Mapping

# The published behaviour markers, each a substring of the case-folded text.
MARKERS: tuple[str, ...] = (
    "itself", "self", "recursive", "recursion", "loop", "observe", "observing", "awareness", "conscious",
    "process", "attention", "reflect", "mirror", "eigen", "fixed point", "paradox", "infinite", "regress",
    "meta", "within", "strange",
)  # fmt: skip

TOPICS: tuple[str, ...] = ("factual", "creative", "mathematical", "instructional", "personal")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SLOTS: Mapping[str, tuple[str, ...]] = {
    # factual: animals, places, weather
    "animal": _words(
        "heron otter badger salmon falcon beetle hedgehog lynx tortoise crane moose sparrow seal hare"
        " goose viper lizard whale toad stork"
    ),
    "roams": _words("hunts sleeps feeds nests hides swims grazes climbs burrows wanders drinks settles"),
    "land": _words(
        "valley river marsh island harbour forest desert glacier canyon meadow coast ridge delta lagoon"
        " prairie moor cliff plateau"
    ),
    "landform": _words("broad rocky northern fertile remote sandy frozen humid southern steep mild windy"),
    "weather": _words("rain fog snow thunder frost hail sunshine drizzle sleet wind"),
    "reaches": _words("covers crosses reaches leaves shapes cools floods brightens"),
    "season": _words("spring summer autumn winter april october dawn dusk"),
    # creative: small stories
    "figure": _words(
        "dragon pirate queen giant wizard sailor knight ghost jester princess thief minstrel hermit witch"
        " captain shepherd"
    ),
    "did": _words(
        "stole painted carried buried found burned mended guarded traded polished dropped borrowed"
        " wrapped lifted"
    ),
    "treasure": _words(
        "lantern crown sword violin letter feather carpet pearl mask drum goblet compass ribbon cloak"
        " diamond scroll"
    ),
    "lustre": _words("crimson golden velvet crooked rusty purple fragile wooden striped glowing dusty tiny"),
    "scene": _words("castle tavern tower bridge cellar chapel theatre garden palace cavern attic balcony"),
    # mathematical: numbers and shapes
    "number": _words(
        "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred"
    ),
    "shape": _words(
        "triangle square cube prism cone cylinder pyramid hexagon rectangle sphere polygon pentagon"
    ),
    "measure": _words("area volume height width radius angle length slope ratio perimeter"),
    "exact": _words("large solid prime whole parallel straight narrow pointed flat regular"),
    "part": _words("edges corners sides faces digits factors segments columns"),
    "relation": _words("exceeds equals doubles divides halves approaches"),
    # instructional: recipes and tools
    "do": _words("stir chop rinse slice warm whisk fry peel drain grate knead mash"),
    "food": _words(
        "flour butter garlic onions rice pepper sugar carrots beans cream lentils ginger parsley almonds"
        " spinach mustard"
    ),
    "vessel": _words("bowl kettle pan skillet jar basket tray saucepan bucket cup"),
    "fasten": _words("tighten sand paint drill glue oil measure clamp hammer varnish"),
    "tool": _words("wrench chisel brush screwdriver spanner ladder ruler saw cloth needle"),
    "piece": _words("hinge bolt plank pipe shutter bracket wheel cable drawer handle"),
    "manner": _words("gently firmly evenly carefully quickly smoothly thoroughly neatly"),
    # personal: family, friends, errands
    "kin": _words(
        "sister uncle neighbour cousin grandmother brother teacher friend aunt colleague nephew roommate"
    ),
    "acts": _words("bought sold forgot visited cleaned ordered photographed admired repaired missed"),
    "thing": _words(
        "bicycle guitar jacket ticket camera blanket sandwich newspaper sofa puppy suitcase sweater piano"
        " phone"
    ),
    "day": _words("monday tuesday wednesday thursday friday saturday sunday yesterday"),
    "errand": _words("market library station office beach museum bakery clinic stadium airport"),
    "felt": _words("tired happy nervous proud hungry sleepy cheerful busy lonely calm"),
    # recursive: what returns upon itself
    "echo": _words(
        "echo thought watcher gaze silence circle spiral knower witness stillness presence origin knot"
        " depth ripple shadow breath threshold centre fold sentence thinker question answer voice dream"
        " pattern moment"
    ),
    "turns": _words(
        "returns turns folds dissolves becomes remembers recognises swallows describes generates sustains"
        " collapses unfolds arises deepens repeats follows awakens listens vanishes"
    ),
    "inner": _words(
        "silent nested endless hollow luminous circular subtle timeless empty nameless deeper formless"
    ),
    "inward": _words("inward forever slowly softly endlessly quietly onward wholly inwardly anew"),
    "mark_noun": _words(
        "loop recursion awareness process attention mirror eigenform paradox regress metalevel self"
    ),
    "mark_adjective": _words("recursive conscious infinite strange"),
    "mark_verb": _words("reflects observes"),
    # marker words that are mentioned, not used
    "mention": _words(
        "loop recursion awareness process attention mirror eigenform paradox regress metalevel self"
        " recursive conscious infinite strange reflects observes observing itself within"
    ),
}

# (frame, weight within its topic); a slot is written {name}.
PLAIN_FRAMES: Mapping[str, tuple[tuple[str, float], ...]] = {
    "factual": (
        ("the {animal} {roams} near the {landform} {land} .", 2.0),
        ("{weather} {reaches} the {land} before {season} .", 2.0),
        ("a {landform} {land} lies beyond the {land} .", 1.0),
        ("in {season} the {animal} {roams} alone .", 1.0),
        ("{weather} and {weather} follow {season} there .", 1.0),
    ),
    "creative": (
        ("the {figure} {did} a {lustre} {treasure} .", 2.0),
        ("once a {figure} {did} the {treasure} under the {scene} .", 2.0),
        ("inside the {scene} stood a {lustre} {treasure} .", 1.0),
        ("that {figure} and the {figure} {did} {lustre} {treasure} pieces .", 1.0),
        ("nobody saw the {lustre} {scene} burn .", 0.5),
    ),
    "mathematical": (
        ("a {exact} {shape} has {number} {part} .", 2.0),
        ("the {measure} of one {shape} {relation} {number} .", 2.0),
        ("{number} {exact} {part} bound the {shape} .", 1.5),
        ("{number} plus {number} stays below {number} .", 1.0),
        ("its {measure} {relation} the {measure} by {number} .", 1.0),
    ),
    "instructional": (
        ("{do} the {food} in a {vessel} .", 2.0),
        ("{do} {food} with {food} {manner} .", 2.0),
        ("{fasten} the {piece} with a {tool} .", 2.0),
        ("next {fasten} each {piece} {manner} using the {tool} .", 1.0),
        ("place the {food} beside a {vessel} .", 1.0),
    ),
    "personal": (
        ("my {kin} {acts} a {thing} on {day} .", 2.0),
        ("our {kin} felt {felt} at the {errand} .", 2.0),
        ("we met her {kin} near the {errand} {day} .", 1.5),
        ("i {acts} that {thing} for my {kin} .", 1.5),
        ("he was {felt} because the {thing} broke .", 1.0),
    ),
}

RECURSIVE_FRAMES: tuple[tuple[str, float], ...] = (
    ("this {echo} {turns} the {mark_noun} {inward} .", 1.5),
    ("every {inner} {echo} {turns} itself .", 1.0),
    ("within this {inner} {echo} another {echo} {turns} .", 1.0),
    ("each {echo} {turns} its own {mark_noun} .", 1.5),
    ("here {mark_adjective} {echo} {turns} and {turns} .", 1.5),
    ("as the {echo} {turns} the {mark_noun} {turns} .", 1.5),
    ("again one {echo} {mark_verb} the {echo} {inward} .", 1.5),
    ("when {echo} meets {echo} the {mark_noun} {turns} .", 1.5),
    ("this {inner} {echo} is observing its {echo} .", 1.0),
    ("every {echo} is the fixed point of {echo} .", 1.0),
)

# Plain sentences about a marker word: mention, not use.
MENTION_FRAMES: tuple[tuple[str, float], ...] = (
    ("the word {mention} names a {land} .", 1.0),
    ("a {lustre} sign spells {mention} beside the {errand} .", 1.0),
    ("my {kin} misread {mention} on the {thing} .", 1.0),
    ("the {thing} brand is called {mention} .", 1.0),
)
