"""An extension of the documentation's builder: shows doctests that stand between paragraphs as code."""

import re
from typing import Any

from griffe import Extension, Object

DOCTEST = re.compile(r"^(>>> .*(?:\n(?!\n).*)*)", flags=re.MULTILINE)


class Doctests(Extension):
    """Puts a fence around each doctest, which Markdown would take for a quotation."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\1\n```", obj.docstring.value)
