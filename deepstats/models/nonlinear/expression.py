"""A curve as text, evaluated by torch and differentiated row by row."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import DesignError, ModelError
from ...expressions import column_name, expression_variables, parse_expression, text_of
from .curves import CURVES, Curve

__all__ = ["FUNCTIONS", "Expression", "check_rowwise"]

#: What an expression may call, besides `CURVES` and the functions of `context=`.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "abs": torch.abs, "atan": torch.atan, "cos": torch.cos, "erf": torch.erf,
    "exp": torch.exp, "expit": torch.sigmoid, "expm1": torch.expm1, "log": torch.log,
    "log10": torch.log10, "log1p": torch.log1p, "log2": torch.log2,
    "plogis": torch.sigmoid, "pnorm": torch.special.ndtr, "sin": torch.sin,
    "sqrt": torch.sqrt, "tan": torch.tan, "tanh": torch.tanh,
}  # fmt: skip
_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip
_CONSTANTS = {"pi": math.pi}
_QUOTED_OR_POWER = re.compile(r"`[^`]*`|\^")


@dataclass(frozen=True, eq=False)
class Expression:
    """The right-hand side of a nonlinear formula.

    Attributes
    ----------
    text : str
    tree : ast.expr
    context : mapping of str to callable
        Functions of the caller: torch in, torch out, one value for each row.
    """

    text: str
    tree: ast.expr
    context: Mapping[str, Callable[..., Tensor]]

    @classmethod
    def parse(
        cls, text: str, context: Mapping[str, Callable[..., Tensor]] | None = None
    ) -> Expression:
        """Read an expression; ``^`` is a power, as in R.

        Raises
        ------
        ModelError
            For a function that is not known.
        """
        found = cls(
            text.strip(),
            parse_expression(_with_powers(text.strip())),
            dict(context or {}),
        )
        for node in ast.walk(found.tree):
            if isinstance(node, ast.Call):
                found._function(node)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Columns and parameters, in the order of the text."""
        return tuple(n for n in self._variables if n not in _CONSTANTS)

    @property
    def constants(self) -> tuple[str, ...]:
        """Names in the text that are numbers: ``pi``."""
        return tuple(n for n in self._variables if n in _CONSTANTS)

    @property
    def _variables(self) -> tuple[str, ...]:
        return expression_variables(_with_powers(self.text))

    @property
    def curve(self) -> Curve | None:
        """The self-starting curve, where the expression is one and nothing else."""
        if not isinstance(self.tree, ast.Call):
            return None
        return CURVES.get(self._name(self.tree))

    def arguments(self) -> dict[str, ast.expr]:
        """Arguments of the self-starting curve by their names."""
        assert self.curve is not None and isinstance(self.tree, ast.Call)
        names, given = self.curve.arguments, self.tree.args
        found = dict(zip(names, given, strict=False))
        named = {str(k.arg): k.value for k in self.tree.keywords}
        wrong = (
            len(given) > len(names) or set(named) - set(names) or set(named) & {*found}
        )
        if wrong or len(found) + len(named) != len(names):
            raise ModelError(
                f"{self.curve.name} takes {len(names)} arguments, "
                f"{self.curve.name}({', '.join(names)}); {self.text!r} has others."
            )
        return {n: (found | named)[n] for n in names}

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        """Evaluate at columns and parameters, each (n,)."""
        return self._value(self.tree, values)

    def value_of(self, node: ast.expr, values: Mapping[str, Tensor]) -> Tensor:
        """Evaluate a part of the expression."""
        found = self._value(node, values)
        like = next(iter(values.values()))
        return torch.as_tensor(found, dtype=torch.float64).expand(like.shape)

    # -- the walk ----------------------------------------------------------------------

    def _value(self, node: ast.expr, values: Mapping[str, Tensor]) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return float(node.value)
        if isinstance(node, ast.Name):
            name = column_name(node.id)
            return values[name] if name in values else _CONSTANTS[name]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = (self._value(n, values) for n in (node.left, node.right))
            return _OPERATORS[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self._value(node.operand, values)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call):
            return self._call(node, values)
        raise DesignError(
            f"`{text_of(node)}` is not allowed in a curve: it may hold columns, "
            "parameters, numbers, arithmetic and calls."
        )

    def _call(self, node: ast.Call, values: Mapping[str, Tensor]) -> Any:
        args = [self._value(a, values) for a in node.args]
        named = {str(k.arg): self._value(k.value, values) for k in node.keywords}
        function = self._function(node)
        name = self._name(node)
        if name in FUNCTIONS and name not in self.context:
            if len(args) != 1 or named:
                raise DesignError(f"`{text_of(node)}`: {name} takes one argument.")
            args = [torch.as_tensor(args[0], dtype=torch.float64)]
        return function(*args, **named)

    def _name(self, node: ast.Call) -> str:
        return node.func.id if isinstance(node.func, ast.Name) else text_of(node.func)

    def _function(self, node: ast.Call) -> Callable[..., Tensor]:
        name = self._name(node)
        if name in self.context:
            return self.context[name]
        if name in CURVES:
            return CURVES[name].function
        if name in FUNCTIONS:
            return FUNCTIONS[name]
        raise ModelError(
            f"no function {name!r}; a curve may call {', '.join(CURVES)}, "
            f"{', '.join(FUNCTIONS)}, and what context={{'{name}': function}} gives."
        )


def _with_powers(text: str) -> str:
    """Write powers as Python does; names in backticks stay as they are."""
    return _QUOTED_OR_POWER.sub(lambda m: "**" if m[0] == "^" else m[0], text)


def check_rowwise(
    expression: Expression, columns: Mapping[str, Tensor], phi: Sequence[Tensor],
    names: Sequence[str],
) -> None:  # fmt: skip
    """Refuse a curve that is not torch's, or whose rows depend on other rows.

    Derivatives are those of the sum over the rows: a row must depend on its own values
    and on nothing else.

    Raises
    ------
    ModelError
    """
    n = len(phi[0])
    leaves = [p.clone().requires_grad_() for p in phi]
    values = dict(columns) | dict(zip(names, leaves, strict=True))
    try:
        found = expression(values)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{expression.text!r} failed: {error}. Its functions must compute with "
            "torch, on the tensors they are given."
        ) from error
    if not isinstance(found, Tensor) or found.shape != (n,):
        raise ModelError(
            f"{expression.text!r} gives {_kind(found)}; it must give a torch tensor "
            f"with a value for each of the {n} rows."
        )
    if not found.requires_grad:
        raise ModelError(
            f"{expression.text!r} cannot be differentiated: its functions must compute "
            "with torch, on the tensors they are given."
        )
    order = torch.arange(n - 1, -1, -2)
    part = expression({name: v.detach()[order] for name, v in values.items()})
    whole = found.detach()[order]
    same = torch.isclose(part, whole, rtol=1e-9, atol=0.0, equal_nan=True)
    if part.shape != whole.shape or not bool(same.all()):
        raise ModelError(
            f"{expression.text!r}: the value of a row depends on other rows, so that "
            "it cannot be differentiated row by row."
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
