"""Noun phrases of captions by rules: words that end a phrase, and endings of words.

For captions ("A girl in a red dress jumps over two dogs."), not for prose: a phrase is a run of
words between prepositions, conjunctions, pronouns, adverbs and verbs. Verbs are those of a list,
which captions have, and what ends in -ing or -ed after a noun. It has no dependency, and misses
what a tagger sees: nouns that look like verbs, verbs that are not listed.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

_TOKEN = re.compile(r"\w+(?:[-'\u2019]\w+)*|['\u2019]s\b|[^\w\s]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    """
    a an the this these those some any each every another no all both several many few my your
    his her its our their
    """
)
NUMBERS = _words(
    """
    one two three four five six seven eight nine ten eleven twelve dozen numerous multiple
    """
)
_COLOURS = _words(
    """
    black white red blue green yellow brown gray grey orange pink purple tan gold golden silver
    beige blond blonde dark light
    """
)
_ADJECTIVES = _COLOURS | _words(
    """
    young old older elderly little small big large tall short long wide tiny huge middle-aged
    male female wooden metal plastic stone brick concrete dirty muddy wet dry snowy rocky sandy
    grassy busy empty full new hot cold colorful bright striped plaid bald happy sad outdoor
    indoor adult asian african american other different same various
    """
)
_PREPOSITIONS = _words(
    """
    about above across after against along alongside amid among amongst around as at atop
    before behind below beneath beside besides between beyond by down for from in inside into
    like near of off on onto opposite outside over past through throughout to toward towards
    under underneath until up upon via with within without
    """
)
# Conjunctions, auxiliaries, pronouns, adverbs: they end a phrase too.
_OUTSIDE = _words(
    """
    ahead away during except out per and or but nor so yet while whilst when where if because
    than that which who whom whose what why how is are was were be been being am has have had
    having do does did doing done can could will would may might must should shall i you he she
    it we they me him us them himself herself itself themselves there here not also just then
    now very too quite really almost only even still again together apart else maybe perhaps
    often ready able alone next such back forward backward backwards forwards upward upwards
    downward downwards downhill uphill upside sideways aside outdoors indoors overhead midair
    mid-air nearby asleep aloft late someplace somewhere more most
    """
)
_DEGREES = _words(
    """
    very nearby too quite really more most upside
    """
)  # of what follows
_POSSESSIVE = frozenset(("'s", "\u2019s"))
_NOUNS_IN_LY = _words(
    """
    family jelly belly fly butterfly dragonfly elderly curly
    """
)
# Present tense or infinitive of verbs in captions; -s, -ed and -ing are made from them.
_VERBS = _words(
    """
    sit stand walk run play wear hold look jump ride lay grip snap lunge belay check scale
    tread retrieve nuzzle watch smile wait work perform carry throw catch kick hit climb swim
    dive fly sleep lie lean eat drink talk speak laugh pose point reach pull push drive sing
    dance cook cut paint read write swing slide skate ski surf sled balance chase bite bark
    sniff lick dig splash wade float paddle sail hike jog compete fight wrestle tackle dribble
    serve shoot aim celebrate cheer clap raise lift hang put place set take give get make use
    try prepare clean wash brush wipe sweep sell buy shop examine inspect study observe stare
    gaze glance peer listen hear play-fight enjoy share feed pet hug kiss touch grab hand cover
    surround face cross enter leave exit approach pass follow lead turn spin twist bend crouch
    kneel squat stretch rest relax nap sunbathe gather crowd line stroll march travel move go
    come fall land leap hop skip bounce flip dangle crawl emerge appear seem show display
    contain attempt begin start stop finish continue help assist teach learn instruct practice
    exercise train chat converse interact discuss whisper yell scream shout cry yawn wave shake
    blow smoke pour stir fry grill bake roast chop slice peel mix spray squirt soak drip drag
    tow haul load unload pack stack build construct repair fix weld drill hammer saw shovel
    rake plow plant pick harvest mow trim tie strap buckle wrap fold sew knit weave type text
    call film record photograph dress undress shave comb hide seek search find explore discover
    visit tour board steer pedal cycle maneuver navigate tumble trip slip crash collide rush
    hurry dash sprint gallop trot roam wander frolic romp tug chew gnaw pant roll trail strum
    juggle conduct entertain address protest demonstrate pray meditate attend meet greet marry
    wed toast overlook tend bring keep wield operate handle adjust toss bow bathe
    """
)
_IRREGULAR = _words(
    """
    sat stood ran held wore rode threw caught hit swam dove flew slept lay lain laid ate drank
    spoke drove sang cut read wrote swung slid bit dug fought shot took taken given got made
    put sold bought fed led bent knelt fell went came began blew hung built wound spun found
    kept brought met lying dying tying seen shown worn thrown driven ridden flown lit
    """
)
_NOUNS_IN_ING = _words(
    """
    building clothing railing string ring king wing evening morning thing spring painting
    wedding crossing sling landing awning ping-pong earring something anything nothing
    everything clearing scaffolding siding opening outing offspring sibling icing pudding
    lightning flooring covering bedding lettering stuffing sterling herring
    """
)
_NOUNS_IN_ED = _words(
    """
    bed red seed weed shed sled reed breed feed speed bobsled moped
    """
)
_PLACES_OF_PREPOSITIONS = _words(
    """
    front top lieu spite case
    """
)  # in front of, on top of
_VERB_ENDING = re.compile(r"(?:ing|ed)\Z")


def noun_phrase_spans(caption: str) -> list[tuple[int, int]]:
    """(first character, one after the last) of each noun phrase, in order, without overlaps."""
    tokens = [(match.group().lower(), *match.span()) for match in _TOKEN.finditer(caption)]
    words = [word for word, _, _ in tokens]
    runs = _joined(_runs(words), words)
    return [(tokens[first][1], tokens[last][2]) for first, last in runs]


def _runs(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last word of each run between words that end one."""
    start: int | None = None
    for place in range(len(words) + 1):
        if start is not None and (place == len(words) or _ends(words, start, place)):
            if _has_noun(words[start:place]):
                yield start, place - 1
            start = None
        if start is None and place < len(words) and _may_start(words, place):
            start = place


def _may_start(words: Sequence[str], place: int) -> bool:
    word, following = words[place], words[place + 1] if place + 1 < len(words) else "."
    if word in DETERMINERS:
        return True
    if word == "nearby":
        return _is_content(following)
    if not _is_word(word) or (word in _PLACES_OF_PREPOSITIONS and following == "of"):
        return False
    if not _is_verb(word):
        return True
    previous = words[place - 1] if place else "of"
    if _VERB_ENDING.search(word):  # "with pierced ears", but "by jumping over"
        return previous in _PREPOSITIONS and _is_content(following)
    if word in _IRREGULAR or (previous == "to" and word in _VERBS):  # "to catch a ball"
        return False
    # "near water", "wearing skis"
    return previous in _PREPOSITIONS or (previous in VERB_FORMS and previous.endswith("ing"))


def _ends(words: Sequence[str], start: int, place: int) -> bool:
    """Whether the word at `place` is no part of the run that starts at `start`."""
    word, run = words[place], words[start:place]
    following = words[place + 1] if place + 1 < len(words) else "."
    if word in _POSSESSIVE or run[-1] in _POSSESSIVE:
        return not _is_word(word) and word not in _POSSESSIVE
    if word in ("and", "or") and run[-1] in _COLOURS:
        return following not in _COLOURS  # "a black and white dog"
    if word in DETERMINERS or word in NUMBERS:
        return _has_noun(run)
    if not _is_word(word):
        # "a very tall building", "a brightly lit room"
        described = _is_described(run) or not (word in _DEGREES or word.endswith("ly"))
        return described or not _is_word(following)
    if not _is_verb(word):
        return False
    if word.endswith("ed") and _is_described(run):  # "a snow covered field"
        return not _is_content(following)
    alone = run[0] not in DETERMINERS and run[0] not in NUMBERS and word in FINITE_FORMS
    return _is_described(run) or alone  # "in pink climbs"


def _is_word(word: str) -> bool:
    if word in _OUTSIDE or word in _PREPOSITIONS or not word[0].isalnum():
        return False
    return not (word.endswith("ly") and len(word) > 4 and word not in _NOUNS_IN_LY)


def _is_content(word: str) -> bool:
    """Whether it can be an adjective or a noun."""
    return _is_word(word) and word not in DETERMINERS and word not in NUMBERS and not _is_verb(word)


def _is_verb(word: str) -> bool:
    if word in _NOUNS_IN_ING or word in _NOUNS_IN_ED:
        return False
    return word in VERB_FORMS or (len(word) > 4 and bool(_VERB_ENDING.search(word)))


def _has_noun(run: Sequence[str]) -> bool:
    return any(word not in DETERMINERS and word not in _POSSESSIVE for word in run)


def _is_described(run: Sequence[str]) -> bool:
    """Whether there is a word in it that can be its noun."""
    return any(
        word not in DETERMINERS and word not in NUMBERS and word not in _ADJECTIVES
        for word in run
        if word not in _DEGREES
    )


def _joined(runs: Iterable[tuple[int, int]], words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """ "a group" and "people" with "of" between them are one phrase."""
    waiting: tuple[int, int] | None = None
    for first, last in runs:
        if waiting is not None:
            if words[waiting[1] + 1 : first] == ["of"]:
                waiting = waiting[0], last
                continue
            yield waiting
        waiting = first, last
    if waiting is not None:
        yield waiting


def _finite(verb: str) -> tuple[str, str]:
    """The verb, and its third person."""
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb, f"{verb}es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb, f"{verb[:-1]}ies"
    return verb, f"{verb}s"


def _participles(verb: str) -> Iterator[str]:
    """With -ed and -ing, also with the last letter doubled where it would not be."""
    stem = verb[:-1] if verb.endswith("e") else verb
    past = verb[:-1] + "i" if verb.endswith("y") and verb[-2] not in "aeiou" else stem
    for ending, base in (("ed", past), ("ing", stem)):
        yield base + ending
        yield base + base[-1] + ending  # running


FINITE_FORMS = frozenset(form for verb in _VERBS for form in _finite(verb))
VERB_FORMS = (
    FINITE_FORMS | frozenset(form for verb in _VERBS for form in _participles(verb)) | _IRREGULAR
)
