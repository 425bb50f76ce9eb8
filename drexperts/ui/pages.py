"""HTML pages and Markdown documents, rendered from the templates in `ui/templates`."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from drexperts.ui.markdown import markdown_table, markdown_text


def render(template: str, **context: object) -> str:
    """The document that a template makes of `context`.

    Values are escaped in an HTML template. In a Markdown template (`*.md.j2`) they are not: there
    the filter `markdown` escapes a text, and `markdown_table` makes lines of a `Table`.

    Raises jinja2.UndefinedError for a name that the context lacks.
    """
    return environment().get_template(template).render(context)


@cache
def environment() -> Environment:
    """Where templates are found, and what they can use."""
    environment = Environment(
        loader=PackageLoader("drexperts.ui"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": markdown_text, "markdown_table": markdown_table}
    return environment
