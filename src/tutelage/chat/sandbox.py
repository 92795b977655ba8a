"""The only door to Jinja: the sandbox in which chat templates run.

Templates come from the Hub and are untrusted programs. They run in Jinja's immutable sandbox, set up as transformers
sets it up (same options, filters and globals, so that the output is the same), with three additions:

- **Limits.** Jinja's sandbox keeps templates away from Python's internals, but not from time and memory. Here every
  loop iteration, call, filter and operator spends from a `Budget`, whatever could grow a string is measured before it runs,
  and lists are measured as they would be written out. Nothing in a template may be left to chance.
- **Tracing.** Operators and filters that build strings keep the spans of `trace.Traced`.
- **Marks.** Loops are rewritten at compile time to leave a zero-width mark in the output when their body begins for a
  message, so that the template's own words can be attributed to the message they frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import FilterArgumentError, SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from tutelage.chat import trace
from tutelage.chat.budget import ITEM_CHARACTERS, Budget, BudgetError, Limits, cost
from tutelage.chat.trace import Mark, MarkKind, Traced
from tutelage.chat.traced_json import traced_json
from tutelage.chat.view import MessageView, source_of

_LOOP = Traced("", ((0, 0, Mark(MarkKind.LOOP)),))
_LEAVE = Traced("", ((0, 0, Mark(MarkKind.LEAVE)),))
_GENERATION = Traced("", ((0, 0, Mark(MarkKind.GENERATION)),))
_END_GENERATION = Traced("", ((0, 0, Mark(MarkKind.END_GENERATION)),))

_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_STRINGS = frozenset({str, Traced})
_VIEW_ATTRIBUTES = frozenset(dir(MessageView))
_REMEMBERED_ATTRIBUTES = 1024
_LARGEST_WIDTH = 1_000_000
_LARGEST_NUMBER_BITS = 100_000
_LONGEST_FOR_SLOW_FILTERS = 100_000
# Filters that go through a text word by word or item by item in Python, and that no chat template needs for long ones.
_SLOW_FILTERS = ("pprint", "striptags", "title", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr")
_SPLITTING_METHODS = frozenset({"split", "rsplit", "splitlines"})
_WIDE = re.compile(r"\d{7,}")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with limits, tracing and marks. One rendering at a time; not for several threads."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self, limits: Limits) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self.limits = limits
        self.budget = Budget(limits)
        self._safe_attributes: dict[tuple[type, str], bool] = {}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": _TemplateDict(self),
            "namespace": _TemplateNamespace,
            "lipsum": _no_chance,
        }
        for name in _SLOW_FILTERS:
            self.filters[name] = self._short(name, self.filters[name])
        for name in ("batch", "slice"):
            self.filters[name] = self._measured_parts(self.filters[name])
        for name in ("center", "wordwrap", "truncate", "batch", "slice"):
            self.filters[name] = self._width_checked(self.filters[name])
        self.filters |= {
            "tojson": self._tojson,
            "join": self._join_filter,
            "replace": self._replace_filter,
            "format": self._format_filter,
            "indent": self._indent_filter,
            "safe": lambda value: trace.safe(str(value)),
            "escape": lambda value: trace.escaped(value if isinstance(value, str) else str(value)),
            "random": _no_chance,
        }
        self.filters["e"] = self.filters["escape"]
        self.filters = {name: self._charged(function) for name, function in self.filters.items()}
        self.filters |= {
            "_concat": self._concat_values,
            "_enter": self._enter,
            "_loop": lambda _: _LOOP,
            "_leave": lambda _: _LEAVE,
            "_measured": self._measured,
            "_sliced": self._sliced,
            "_tick": self._tick,
        }
        self.concat = self.concat_pieces  # type: ignore[method-assign]  # macros and set blocks join their pieces with it

    # compilation

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        tree = _Instrument().visit(source)
        tree.set_environment(self)
        return super()._generate(tree, name, filename, defer_init)

    # attributes, operators and calls

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute`; fields of messages are found first where no attribute could hide them."""
        if type(obj) is MessageView and attribute in obj and attribute not in _VIEW_ATTRIBUTES:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether Jinja's sandbox lets a template see this attribute. Its rules look at the type and the name alone, so
        that each answer is asked for once."""
        answer = self._safe_attributes.get((type(obj), attr))
        if answer is None:
            if len(self._safe_attributes) >= _REMEMBERED_ATTRIBUTES:  # a template can make up names without end
                self._safe_attributes.clear()
            answer = self._safe_attributes[type(obj), attr] = super().is_safe_attribute(obj, attr, value)
        return answer

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse an attribute that templates may not see, where Jinja would write nothing in its place."""
        raise SecurityError(f"a chat template may not see {attribute!r} of {type(obj).__name__!r}")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an intercepted operator after measuring its result."""
        if operator == "+":
            if type(left) in _STRINGS and type(right) in _STRINGS:
                self.budget.charge(len(left) + len(right))
                return left + right
            self.budget.charge(cost(left) + cost(right))
            if isinstance(left, str) and isinstance(right, str) and (trace.is_safe(left) or trace.is_safe(right)):
                return trace.add_escaped(left, right)
            total = left + right
            if isinstance(total, list | tuple):
                self.budget.book(total, self.budget.measure(left) + self.budget.measure(right))
            return total
        if operator == "%" and isinstance(left, str):
            return self._percent(left, right)
        if operator == "*":
            return self._product(left, right)
        if operator == "**":
            self._check_power(left, right)
        else:
            self.budget.spend()
        return self.binop_table[operator](left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what the template calls; string methods that could grow text are measured, and traced."""
        owner = getattr(__obj, "__self__", None)
        __self.budget.charge(cost(owner))
        if isinstance(owner, str):
            name = __obj.__name__
            _without_frame(kwargs)
            if name in _SPLITTING_METHODS:
                __self._check_split(owner, name, args)
            if name == "join":
                return __self._join(owner, *args)
            if name == "replace":
                return __self._replace(owner, *args, **kwargs)
            if name in _PADDING_METHODS:
                __self._check_widths(args, kwargs)
            if type(owner) in _STRINGS:
                return __obj(*args, **kwargs)  # a method of text is safe, and wants nothing of the context
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replace `str.format`: sandboxed as Jinja does it, measured and traced."""
        owner = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "")
        if not isinstance(owner, str) or name not in ("format", "format_map"):
            return None
        formatter = SandboxedFormatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            if name == "format_map":
                (kwargs,), args = args, ()
            self._check_format(
                owner, nested=re.search(r"\{[^{}]*\{", owner) is not None, values=(*args, *kwargs.values())
            )
            names = list(kwargs)

            def make(values: list[Any]) -> str:
                numbered, named = values[: len(args)], values[len(args) :]
                return formatter.vformat(trace.plain(owner), tuple(numbered), dict(zip(names, named, strict=True)))

            return trace.stitched(make, [*args, *kwargs.values()])

        return formatted

    def concat_pieces(self, pieces: Iterable[str]) -> str:
        """Join the output of a macro, a call block or a set block."""
        pieces = list(pieces)
        self.budget.charge(sum(map(len, pieces)))
        return trace.concat(pieces)

    def _concat_values(self, values: list[Any]) -> str:
        """The operator `~`."""
        return self.concat_pieces(map(str, values))

    # filters

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self._check_widths((indent,), {})
        self.budget.spend()
        options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        text = json.dumps(value, **options)  # type: ignore[arg-type]
        self.budget.charge(len(text))
        return traced_json(value, text, options=options)

    def _join(self, separator: str, items: Iterable[str]) -> str:
        items = list(items)
        self.budget.charge(sum(map(cost, items)) + len(separator) * len(items))
        return trace.join(separator, items)

    def _join_filter(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        return self._join(str(d), [str(item) for item in value])

    def _replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        found = text.count(old)
        self.budget.charge(len(text) + max(0, len(new) - len(old)) * (found if count < 0 else min(found, count)))
        return trace.replace(text, old, new, count)

    def _replace_filter(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        return self._replace(str(s), str(old), str(new), -1 if count is None else count)

    def _percent(self, left: str, right: Any) -> str:
        values = right if isinstance(right, tuple) else tuple(right.values()) if isinstance(right, dict) else (right,)
        self._check_format(left, nested="*" in left, values=values)
        return trace.percent(left, right)

    def _format_filter(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if args and kwargs:
            raise FilterArgumentError("can't handle positional and keyword arguments at the same time")
        return self._percent(str(value), kwargs or args)

    def _indent_filter(self, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        self._check_widths((width,), {})
        space = width if isinstance(width, str) else " " * width
        lines = (str(s) + "\n").splitlines()
        self.budget.charge(sum(map(len, lines)) + len(lines) * (len(space) + 1))
        indented = [
            space + line if (line or blank) and (number or first) else line for number, line in enumerate(lines)
        ]
        return trace.join("\n", indented)

    def _charged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Let a filter pay for the text or list that it is given."""

        @wraps(function)  # keeps Jinja's marks for filters that want the environment
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.budget.charge(sum(map(cost, args[:2])))  # the value comes first, or behind the environment
            return function(*args, **kwargs)

        return charged

    def _short(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Keep a slow filter from long texts and lists."""

        @wraps(function)
        def short(*args: Any, **kwargs: Any) -> Any:
            if max(map(self.budget.measure, args[:2]), default=0) > _LONGEST_FOR_SLOW_FILTERS:
                raise BudgetError(f"the filter {name} is not for texts beyond {_LONGEST_FOR_SLOW_FILTERS:,} characters")
            return function(*args, **kwargs)

        return short

    def _measured_parts(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Measure the lists that a filter divides a list into: what it fills them up with can be large."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            so_far = 0
            for part in function(*args, **kwargs):
                so_far += self.budget.measure(part)
                self.budget.require_short(so_far)
                yield part

        return measured

    def _width_checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps Jinja's marks for filters that want the environment
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._check_widths(args, kwargs)
            self.budget.spend()
            return function(*args, **kwargs)

        return checked

    # marks

    def _enter(self, item: Any) -> str:
        self.budget.spend()
        if type(item) is MessageView:
            return _enter_mark(item._index)
        if isinstance(item, dict):  # a message that the template built itself: its role says which it was
            source = source_of(item.get("role"))
            return "" if source is None or source.message < 0 else _enter_mark(source.message)
        return ""

    def _tick(self, item: Any) -> None:
        self.budget.spend()

    def _measured(self, value: Any) -> Any:
        """Return a list, tuple or mapping that the template has just made."""
        self.budget.measure(value)
        return value

    def _sliced(self, value: Any) -> Any:
        """Return a slice that the template has just taken."""
        self.budget.charge(cost(value))
        return value

    # limits

    def _check_widths(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and value > _LARGEST_WIDTH:
                raise BudgetError(f"the template pads text to a width of {value:,}")

    def _check_format(self, template: str, *, nested: bool, values: tuple[Any, ...]) -> None:
        self.budget.charge(len(template) + sum(map(cost, values)))
        if _WIDE.search(template) or (nested and any(_WIDE.search(str(value)) for value in values)):
            raise BudgetError("the template formats text to an enormous width")

    def _check_split(self, text: str, name: str, args: tuple[Any, ...]) -> None:
        separator = args[0] if name != "splitlines" and args and isinstance(args[0], str) else ""
        parts = text.count(separator) if separator else len(text)
        self.budget.charge(ITEM_CHARACTERS * (parts + 1))

    def _product(self, left: Any, right: Any) -> Any:
        """Return the product of numbers, or a text or list repeated, after measuring it."""
        if isinstance(left, int) and isinstance(right, int):
            self.budget.spend()
            if left.bit_length() + right.bit_length() > _LARGEST_NUMBER_BITS:
                raise BudgetError("the template computes with enormous numbers")
        elif isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            sequence, count = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(count, int):
                is_text = isinstance(sequence, str)
                size = (cost(sequence) if is_text else self.budget.measure(sequence)) * max(0, count)
                self.budget.charge(size)
                return sequence * count if is_text else self.budget.book(sequence * count, size + ITEM_CHARACTERS)
        else:
            self.budget.spend()
        return left * right

    def _check_power(self, left: Any, right: Any) -> None:
        self.budget.spend()
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _LARGEST_NUMBER_BITS:
            raise BudgetError(f"the template computes {left} to the power of {right}")


class GenerationTag(Extension):
    """`{% generation %}` of transformers: marks what the assistant wrote, here as marks in the output."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the block into a call whose result is framed by marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_framed"), [], [], body).set_lineno(line)

    def _framed(self, caller: Macro) -> str:
        return trace.concat((_GENERATION, caller(), _END_GENERATION))


class _Instrument(NodeTransformer):
    """Make loops leave marks and spend budget, and make `~` keep spans."""

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:  # noqa: N802  # Jinja's naming
        """Put marks before, into and behind a loop that writes; let any other loop spend only."""
        self.generic_visit(node)
        if not any(node.find_all((nodes.Output, nodes.CallBlock, nodes.FilterBlock))):
            node.body = [nodes.ExprStmt(_filter("_tick", nodes.ContextReference())), *node.body]
            return [node]
        target = node.target
        item = nodes.Name(target.name, "load") if isinstance(target, nodes.Name) else nodes.ContextReference()
        node.body = [nodes.Output([_filter("_enter", item)]), *node.body]
        before, behind = (nodes.Output([_filter(name, nodes.ContextReference())]) for name in ("_loop", "_leave"))
        return [before, node, behind]

    def visit_Assign(self, node: nodes.Assign) -> list[nodes.Node]:  # noqa: N802
        """A loop over numbers enters a message where it takes it from the list: `{% set message = messages[i] %}`."""
        self.generic_visit(node)
        taken = isinstance(node.node, nodes.Getitem) and isinstance(node.node.arg, nodes.Name | nodes.Getattr)
        if not taken or not isinstance(node.target, nodes.Name):
            return [node]
        return [node, nodes.Output([_filter("_enter", nodes.Name(node.target.name, "load"))])]

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        """A list, tuple or mapping that holds anything but constants is measured."""
        self.generic_visit(node)
        return node if _is_constant(node) else _filter("_measured", node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        """A tuple too, unless it is a target: `{% set a, b = ... %}`."""
        self.generic_visit(node)
        return node if node.ctx != "load" or _is_constant(node) else _filter("_measured", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """A slice is a copy, and paid for."""
        self.generic_visit(node)
        return _filter("_sliced", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """`a ~ b` becomes a filter on the list of its operands."""
        self.generic_visit(node)
        return _filter("_concat", nodes.List(node.nodes))


def _filter(name: str, argument: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(argument, name, [], [], None, None)


def _without_frame(kwargs: dict[str, Any]) -> None:
    """Drop the local variables that compiled code passes along with every call inside a loop or block."""
    kwargs.pop("_loop_vars", None)
    kwargs.pop("_block_vars", None)


@cache
def _enter_mark(message: int) -> Traced:
    return Traced("", ((0, 0, Mark(MarkKind.ENTER, message)),))


def _is_constant(node: nodes.Node) -> bool:
    """Whether a list or mapping is written with constants alone, so that its size is that of its source."""
    if isinstance(node, nodes.List | nodes.Tuple | nodes.Dict | nodes.Pair):
        return all(map(_is_constant, node.iter_child_nodes()))
    return isinstance(node, nodes.Const)


def _raise_exception(message: str) -> None:
    raise RefusedByTemplate(str(message))


def _no_chance(*args: Any, **kwargs: Any) -> str:
    raise SecurityError("a chat template may not choose or write anything by chance")


class RefusedByTemplate(jinja2.TemplateError):
    """A conversation that the template itself refuses, with `raise_exception`."""


class _TemplateDict:
    """The function `dict` for templates, without the type's other attributes."""

    def __init__(self, environment: ChatEnvironment) -> None:
        self._environment = environment

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        made: dict[str, Any] = self._environment._measured(dict(*args, **kwargs))
        return made

    def fromkeys(self, *args: Any) -> dict[str, Any]:
        """Return `dict.fromkeys(...)`."""
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """Jinja's namespace, closed to names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as in Jinja: a template may store `self`
        self, args = args[0], args[1:]
        fields = dict(*args, **kwargs)
        for name in fields:
            _check_name(name)
        Namespace.__init__(self, fields)

    def __repr__(self) -> str:
        return "<Namespace>"  # Jinja's own writes out what is in it, however much that is

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not store {name!r} in a namespace")
