"""The house's docstrings as reStructuredText for napoleon, so that they can stay plain text in the source.

    blocks indented by four spaces      stay as they stand: formulas, tables, or Python
    `name`, `name(...)`                 a link where it is a public name of sdegen, else code
    References                          a list of one item each, arXiv numbers as links
    * | _ elsewhere                     themselves, but for *emphasis*

Types in signatures, named by the file they come from, become links to the same places.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|References|Examples):$")
PYTHON = re.compile(r"(?m)^\s*(@|def |class |import |from |for |return |with |\w+ = \w+(\.\w+)*\()")
BACKTICKED = re.compile(r"(``?[^`]+``?)")
SIGNS = re.compile(r"(\*\w+\*)|[*|\\]|(?<=\w)_(?!\w)")  # *this* is emphasis
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
INTEROP = ("sdegen.interop", "sdegen.interop.diffusers", "sdegen.interop.zuko", "sdegen.interop.sklearn")
LEAVES = ("sdegen.nets", "sdegen.datasets", *INTEROP, "sdegen.plot")


def public_names() -> list[tuple[str, str]]:
    """(module, name) of every class and function for users: of `__all__`, or what a leaf without one defines."""
    names: list[tuple[str, str]] = []
    for place in ("sdegen", *LEAVES):
        held = vars(importlib.import_module(place))
        own = [n for n, v in held.items() if isinstance(v, (type, FunctionType)) and v.__module__ == place]
        listed = [n for n in held.get("__all__", own) if n[0] != "_"]
        names += [(place, n) for n in listed if callable(held.get(n, callable))]  # what is imported later is trusted
    return names


PUBLIC = {name: f"{module}.{name}" for module, name in reversed(public_names())}  # the core's before a leaf's


def links(name: str) -> dict[str, str]:
    """What a word in the docstring of `name` may mean: a name of the core, or of the leaf it stands in."""
    return {n: f"{m}.{n}" for m, n in reversed(public_names()) if m == "sdegen" or name.startswith(m)}


def inline(line: str, names: Mapping[str, str]) -> str:
    """One line of prose: what stands between backticks as a link or as code, the rest with its signs escaped."""
    parts = BACKTICKED.split(line)
    parts[0::2] = [SIGNS.sub(lambda found: found[1] or f"\\{found[0]}", part) for part in parts[0::2]]
    parts[1::2] = [_code(part.strip("`"), names) for part in parts[1::2]]
    return "".join(parts)


def _code(text: str, names: Mapping[str, str]) -> str:
    text = text.removeprefix("sdegen.")
    found = re.fullmatch(r"(\w+)(\.\w+)?(\([^<>`]*\))?", text)
    return f":py:obj:`{text} <{names[found[1]]}>`" if found and found[1] in names else f"``{text}``"


def references(lines: list[str], names: Mapping[str, str]) -> Iterator[str]:
    """The items of a References section, each of which ends with a full stop at the end of a line."""
    item: list[str] = []
    for line in filter(str.strip, lines):
        item.append(line.strip())
        if line.endswith((".", ")")):
            text = inline(" ".join(item), names)
            yield "    - " + ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", text)
            item = []
    if item:
        yield "    - " + inline(" ".join(item), names)


def prose(lines: list[str], names: Mapping[str, str]) -> Iterator[str]:
    """Paragraphs, and as literal blocks whatever is indented by four spaces after an empty line."""
    k = 0
    while k < len(lines):
        if lines[k].startswith("    ") and (k == 0 or not lines[k - 1].strip()):
            end = next((j for j in range(k, len(lines)) if lines[j].strip() and lines[j][0] != " "), len(lines))
            language = "python" if PYTHON.search("\n".join(lines[k:end])) else "text"
            yield from (f".. code-block:: {language}", "", *lines[k:end])
            k = end
        else:
            yield inline(re.sub(r"::$", ":", lines[k]), names)
            k += 1


def section(title: str, lines: list[str], names: Mapping[str, str]) -> Iterator[str]:
    """One of Google's sections."""
    yield title
    if title == "References:":
        yield from (*references(lines, names), "")
    elif title == "Examples:":
        yield from lines
    else:
        yield from (inline(line, names) for line in lines)


def converted(lines: list[str], names: Mapping[str, str]) -> list[str]:
    """A whole docstring, with links to `names`."""
    starts = [k for k, line in enumerate(lines) if SECTION.match(line)]
    ends = [*starts, len(lines)][1:]
    result = list(prose(lines[: starts[0]] if starts else lines, names))
    for start, end in zip(starts, ends, strict=True):
        result.extend(section(lines[start], lines[start + 1 : end], names))
    return result


def _convert(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = converted(lines, links(name))


def _signature(app: Sphinx, what: str, name: str, obj: object, options: object, sig: str, back: str) -> object:
    """A default that is made anew for every value, in a form that parses; None is no change."""
    return (sig.replace("<factory>", "..."), back) if "<factory>" in (sig or "") else None


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out a NamedTuple's fields, which the Attributes section explains, and what a public base documents."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") or _overrides(name, obj) else None


def _overrides(name: str, obj: object) -> bool:
    """Whether a method or property is that of a public class of sdegen, given anew by a class below it."""
    function = getattr(obj, "fget", None) or getattr(obj, "__func__", obj)
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    cls = getattr(sys.modules.get(getattr(function, "__module__", "")), owner, None)
    bases = cls.__mro__[1:] if isinstance(cls, type) else ()
    return any(name in vars(base) and base.__name__ in PUBLIC for base in bases)


def _resolve(app: Sphinx, env: BuildEnvironment, node: Element, contnode: Element) -> Element | None:
    """A type in a signature, named by the file it comes from: the public name's page, or plain text for others'."""
    target = str(node.get("reftarget", ""))
    name = target.rsplit(".", 1)[-1]
    if node.get("refdomain") != "py":
        return None
    if name in PUBLIC and target != PUBLIC[name] and target.startswith(("sdegen.", name)):
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", PUBLIC[name], node, contnode)
    return None if target in PUBLIC.values() else contnode


def setup(app: Sphinx) -> None:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _convert, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve)
