"""What the templates of this package make of values."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from bipe.report.palette import theme_css
from bipe.report.tables import markdown_table, numeric_columns, plain, row_groups


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill in a template; on a page, values are escaped unless they are `Markup`.

    Args:
        template: name of a file in `templates/`.
        values: by the names that the template uses, all of them.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bipe.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown_table
    environment.filters["plain"] = plain
    environment.globals |= {"theme": Markup(theme_css()), "groups": row_groups, "numeric": numeric_columns}
    return environment
