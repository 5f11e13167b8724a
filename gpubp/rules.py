"""A backward rule as data: written once, printed for readers, executed by the tests.

Every gradient that this library computes is stated by a `Rule` beside the code that computes it. The test suite
evaluates `formula` and `index_form` and demands that code, formula and index form agree to 1e-10 in float64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rule:
    """How one gradient follows from the gradient of what comes after.

    Attributes:
        gradient: The name of what is computed, such as ``dL_dW``; it has the shape of ``W``.
        formula: Array maths on the last two axes, such as ``X.mT @ dL_dY``. Names are the layer's own: its input
            ``X``, its output ``Y``, its parameters, its constants, what it saves, ``dL_dY``.
        index_form: The same for single numbers, such as ``dL_dW[i,o] = sum_n X[n,i] * dL_dY[n,o]``. A ``sum_n``
            or ``mean_n`` reaches to the end of the expression or of the parentheses it stands in; ``I[j,k]`` is 1
            where j is k, else 0.
        why: One sentence that says why it is so.
    """

    gradient: str
    formula: str
    index_form: str
    why: str

    def renamed(self, names: Mapping[str, str]) -> Rule:
        """The same rule with array names replaced, whole names only."""
        pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")

        def swap(text: str) -> str:
            return pattern.sub(lambda match: names[match.group()], text)

        return replace(
            self,
            gradient=swap(self.gradient),
            formula=swap(self.formula),
            index_form=swap(self.index_form),
            why=swap(self.why),
        )

    def __str__(self) -> str:
        return f"{self.gradient} = {self.formula}    because {self.why}    ({self.index_form})"
