"""The value expression that orders results, for example ``bid * p_click * p_purchase``.

A tiny arithmetic language: names, numbers, ``+ - * / **``, unary minus, parentheses and the
functions ``log``, ``exp``, ``sqrt``, ``min``, ``max``. Parsed once with Python's own parser,
checked node by node, and evaluated over numpy columns in float64. Nothing else can run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "log": (np.log, 1),
    "exp": (np.exp, 1),
    "sqrt": (np.sqrt, 1),
    "min": (np.minimum, 2),
    "max": (np.maximum, 2),
}


@dataclass(frozen=True)
class ValueExpression:
    """A parsed expression; `names` are the columns it reads."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> ValueExpression:
        """Parse `text`; raises `ValueError` naming the part that is not allowed."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"value expression {text!r}: {error.msg} at column {error.offset}") from error
        names: set[str] = set()
        _check(tree, names, text)
        if not names:
            raise ValueError(f"value expression {text!r}: names no task and no column")
        return cls(text, tree, frozenset(names))

    def evaluate(self, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Value per row, float64 [N], from float64 columns [N]."""
        with np.errstate(all="ignore"):
            return np.asarray(_evaluate(self.tree, columns), dtype=np.float64)


def _check(node: ast.expr, names: set[str], text: str) -> None:
    match node:
        case ast.Name(id=name):
            names.add(name)
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            if abs(value) > 1e300:
                raise ValueError(f"value expression {text!r}: a number beyond 1e300 is not allowed")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, names, text)
            _check(right, names, text)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand, names, text)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            if len(args) != _FUNCTIONS[name][1]:
                raise ValueError(
                    f"value expression {text!r}: {name} takes {_FUNCTIONS[name][1]} argument(s), found {len(args)}"
                )
            for argument in args:
                _check(argument, names, text)
        case _:
            raise ValueError(f"value expression {text!r}: {ast.unparse(node)!r} is not allowed")


def _evaluate(node: ast.expr, columns: Mapping[str, NDArray[np.float64]]) -> Any:
    match node:
        case ast.Name(id=name):
            return columns[name]
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_evaluate(left, columns), _evaluate(right, columns))
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, columns)
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name][0](*(_evaluate(argument, columns) for argument in args))
    raise AssertionError(f"unchecked node {ast.dump(node)}")
