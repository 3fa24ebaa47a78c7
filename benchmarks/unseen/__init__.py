"""Training steps of kinds that the project's own workloads do not have, one H100 each, f32 unless said.

A program is a function that gives its loss, its parameters, the shapes of its batch and, where that is not Adam over
the whole batch, how it is trained (`steps.Training`), and on several devices, which (`steps.Devices`).
"""

from unseen import (
    eighth,
    eleventh,
    fifth,
    first,
    fourteenth,
    fourth,
    ninth,
    second,
    seventh,
    sixth,
    tenth,
    third,
    thirteenth,
    twelfth,
)

PARTS = {
    "first": first.ALL | second.ALL,
    "second": third.ALL,
    "third": fourth.ALL,
    "fourth": fifth.ALL,
    "fifth": sixth.ALL,
    "sixth": seventh.ALL,
    "seventh": eighth.ALL,
    "eighth": ninth.ALL,
    "ninth": tenth.ALL,
    "tenth": eleventh.ALL,
    "eleventh": twelfth.ALL,
    "twelfth": thirteenth.ALL,
    "thirteenth": fourteenth.ALL,
}
"""Name to function, by part: the one that rules were found on, and those that they were then tried on."""
