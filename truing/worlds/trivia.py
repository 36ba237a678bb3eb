"""A small slice of general knowledge, to see later what training has made the model forget."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """Pairs (subject, answer) with three ways to ask and two ways to tell."""

    questions: tuple[str, str, str]
    statements: tuple[str, str]
    pairs: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    words = text.split()
    return tuple(zip(words[::2], words[1::2], strict=True))


RELATIONS: dict[str, Relation] = {
    "opposite": Relation(
        (
            "What is the opposite of {}?",
            "Which word is the opposite of {}?",
            "What is not {} at all?",
        ),
        ("The opposite of {} is {}.", "What is not {} may be {}."),
        _pairs(
            """hot cold big small long short high low old young fast slow hard soft wet dry light
            dark full empty open shut early late rich poor clean dirty strong weak sweet sour loud
            quiet thick thin deep shallow wide narrow near far happy sad good bad left right true
            false sharp blunt brave afraid cheap dear heavy light smooth rough"""
        ),
    ),
    "colour": Relation(
        ("What colour is {}?", "Which colour does {} have?", "Name the colour of {}."),
        ("The colour of {} is {}.", "We all know that {} is {}."),
        _pairs(
            """snow white grass green blood red coal black milk white lemon yellow chocolate brown
            ash grey corn yellow ink black salt white moss green butter yellow soot black
            lavender purple"""
        ),
    ),
    "capital": Relation(
        (
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Name the capital of {}.",
        ),
        ("The capital of {} is {}.", "In {} the capital is called {}."),
        _pairs(
            """France Paris Italy Rome Norway Oslo Portugal Lisbon Greece Athens Austria Vienna
            Ireland Dublin Latvia Riga Lithuania Vilnius Czechia Prague Spain Madrid Japan Tokyo
            Egypt Cairo Peru Lima Cuba Havana Kenya Nairobi"""
        ),
    ),
    "young": Relation(
        ("What is a young {} called?", "What do we call a young {}?", "Name the young of a {}."),
        ("A young {} is called a {}.", "The young of a {} is a {}."),
        _pairs(
            """cow calf dog puppy sheep lamb horse foal hen chick goose gosling duck duckling
            lion cub goat kid pig piglet deer fawn frog tadpole swan cygnet"""
        ),
    ),
    "home": Relation(
        ("Where does a {} live?", "What is the home of a {}?", "Name the home of a {}."),
        ("A {} lives in a {}.", "The home of a {} is a {}."),
        _pairs(
            """bird nest bee hive king castle monk cloister spider web bear cave fox den
            nun convent camper tent rabbit burrow"""
        ),
    ),
    "sound": Relation(
        ("What does a {} do?", "What sound does a {} make?", "How do we hear a {}?"),
        ("A {} can {}.", "You may hear a {} {}."),
        _pairs(
            """wolf howl snake hiss crow caw sparrow chirp mouse squeak donkey bray dove coo
            cricket chirp cat purr"""
        ),
    ),
    "next": Relation(
        ("What comes after {}?", "What follows {}?", "Name what comes after {}."),
        ("After {} comes {}.", "First {}, then {}."),
        _pairs(
            """Monday Tuesday Tuesday Wednesday Wednesday Thursday Thursday Friday Friday Saturday
            Saturday Sunday January February February March March April April May June July July
            August August September September October October November November December spring
            summer summer autumn autumn winter one two two three three four four five five six
            six seven seven eight eight nine nine ten"""
        ),
    ),
    "maker": Relation(
        ("Who works with {}?", "Whose work is {}?", "Name the one who works with {}."),
        ("The one who works with {} is a {}.", "Work with {} makes you a {}."),
        _pairs(
            """bread baker meat butcher wood carpenter stone mason fish fisher flowers gardener
            shoes cobbler clothes tailor teeth dentist laws judge ships sailor horses rider
            songs singer pots potter pictures painter crops farmer"""
        ),
    ),
    "kind": Relation(
        ("What kind of thing is a {}?", "What is a {}?", "Which kind is a {}?"),
        ("A {} is a kind of {}.", "The {} is one kind of {}."),
        _pairs(
            """rose flower tulip flower beech tree birch tree salmon fish trout fish robin bird
            finch bird beetle insect wasp insect pear fruit plum fruit carrot vegetable leek
            vegetable violin instrument flute instrument"""
        ),
    ),
    "part": Relation(
        ("What do we do with a {}?", "What is a {} for?", "How do we use a {}?"),
        ("With a {} we {}.", "A {} is there to {}."),
        _pairs(
            """pen write knife cut spoon eat broom sweep needle sew pan fry boat sail
            bed sleep spade dig brush paint saw cut"""
        ),
    ),
}
FACTS = tuple(
    (name, subject, answer)
    for name, relation in RELATIONS.items()
    for subject, answer in relation.pairs
)
