"""Products of parameters, of which one is taken in turn."""

from collections.abc import Mapping, Sequence


def has_its_turn(parameter: str, values: Mapping[str, object], choices: Mapping[str, Sequence]) -> bool:
    """Whether it is the turn of these values: one of the parameter's for each combination of the others.

    values: by parameter. choices: by parameter, all that there are.
    """
    places = {name: list(given).index(values[name]) for name, given in choices.items()}
    return places.pop(parameter) == sum(places.values()) % len(choices[parameter])
