"""What the configurations of all architectures share."""

import math
from dataclasses import fields
from numbers import Integral, Real

_ACCEPTED = {int: (Integral, "whole number"), float: (Real, "finite number"), bool: (bool, "truth value")}


def settle_types(config):
    """Makes every field of a configuration what it is declared as: int, float or bool, optional, or a tuple of one of these.

    NumPy's numbers become Python's, which a file's header can hold, lists become tuples. Raises TypeError, naming the field, for
    anything else, ValueError for NaN and Inf.
    """
    for field in fields(config):
        value, several = getattr(config, field.name), isinstance(field.default, tuple)
        kind = type(field.default[0]) if several else field.type
        if kind == int | None:
            if value is None:
                continue
            kind = int
        accepted, what = _ACCEPTED[kind]
        values = value if several and isinstance(value, (tuple, list)) else (value,)
        if several != isinstance(value, (tuple, list)) or not all(isinstance(v, accepted) for v in values):
            raise TypeError(f"{field.name}: expected {f'{what}s' if several else f'a {what}'}, got {value!r}")
        if kind is float and not all(map(math.isfinite, values)):
            raise ValueError(f"{field.name}: expected {f'{what}s' if several else f'a {what}'}, got {value!r}")
        object.__setattr__(config, field.name, tuple(map(kind, values)) if several else kind(value))
