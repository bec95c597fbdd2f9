"""Which faults are planted: cosmic-ray's operators that mimic slips in numerical code, and a few of our own."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

try:
    import parso
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.operator import Operator
    from cosmic_ray.plugins import get_operator
except ImportError:
    print("mutation.py needs cosmic-ray: pip install -e '.[mutation]'", file=sys.stderr)
    sys.exit(2)

PACKAGE = "lepton_cli"
#: cosmic-ray's operators, one or two for each sign: all pairs would drown the rest.
CORE = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_Mul", "Pow_Mul", "BitOr_BitAnd", "BitAnd_BitOr")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "Lt_Gt", "LtE_Lt", "LtE_GtE", "Gt_GtE", "Gt_Lt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("GtE_Gt", "GtE_LtE", "Eq_NotEq", "NotEq_Eq")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_Delete_{sign}" for sign in ("USub", "Not", "Invert")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"),
)
#: One more or less than this is no fault that a result shows.
LARGE = 1000
#: Names of functions whose confusion is a likely slip.
SWAPPED = {"min": "max", "minimum": "maximum", "argmin": "argmax", "any": "all", "floor": "ceil", "zeros": "ones"}
SWAPPED |= {new: old for old, new in SWAPPED.items()}


class Own(Operator):
    """An operator that changes a node as a whole, in one way for each position."""

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class DropTranspose(Own):
    """`x.T` becomes `x`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "trailer" and node.get_code() == ".T":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> None:
        return None


class DropTerm(Own):
    """`a + b` becomes `a`, and so with factors and conditions."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type in {"arith_expr", "term", "and_test", "or_test"}:
            yield from [(sign.start_pos, sign.end_pos) for sign in node.children[1::2]]

    def mutate(self, node: Any, index: int) -> Any:
        del node.children[2 * index + 1 : 2 * index + 3]
        return node


class SwapName(Own):
    """`min` becomes `max`, and so with the other pairs of `SWAPPED`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "name" and node.value in SWAPPED and not node.is_definition():
            called = node.get_next_leaf().value == "("
            if called and node.get_previous_leaf().value not in {"def", "import"}:
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = SWAPPED[node.value]
        return node


class SwapMembership(Own):
    """`in` becomes `not in` and the other way round."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if getattr(node.parent, "type", "") == "comparison" and node.get_code(False) in {"in", "not in"}:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(" in" if node.type == "comp_op" else " not in")


class RemoveStatement(Own):
    """A call, a changed variable, an early return or a raise is gone; a function without its last return gives None."""

    KINDS = frozenset({"atom_expr", "return_stmt", "raise_stmt", "yield_expr", "del_stmt"})

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt" and self._counts(node.children[0]):
            yield node.start_pos, node.end_pos

    def _counts(self, node: Any) -> bool:
        if node.type != "expr_stmt":
            return node.type in self.KINDS or (node.type == "keyword" and node.value in {"return", "continue", "raise"})
        target, sign, *value = (child.get_code(False) for child in node.children)
        # Without its first value a name is only unknown.
        again = set(re.findall(r"\w+", target)) & set(re.findall(r"(?<![\w.])\w+", " ".join(value)))
        return len(node.children) > 2 and (sign != "=" or bool(set(".[") & set(target)) or bool(again))

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(f"{node.get_first_leaf().prefix}pass\n")


OWN = {operator.__name__: operator for operator in (DropTranspose, DropTerm, SwapName, SwapMembership, RemoveStatement)}


@dataclass(frozen=True, order=True)
class Mutant:
    """The change that an operator makes at its n-th place in a module (relative to the package)."""

    module: str
    line: int
    operator: str
    occurrence: int

    def rank(self, seed: int) -> str:
        return hashlib.sha256(f"{seed} {self.module} {self.operator} {self.occurrence}".encode()).hexdigest()

    def of(self, source: str) -> str:
        return str(mutate_code(source, _operator(self.operator), self.occurrence))

    def diff(self, source: str) -> str:
        where = f"{PACKAGE}/{self.module}:{self.line}"
        before, after = source.splitlines(keepends=True), self.of(source).splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, where, f"{where} {self.operator}", n=1))


def _operator(name: str) -> Operator:
    return OWN[name]() if name in OWN else get_operator(f"core/{name}")()


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """All that count, in no particular order."""
    ignored = list(_ignored(ast.parse(source)))
    operators = {name: _operator(name) for name in (*CORE, *OWN)}
    seen: Counter[str] = Counter()
    nodes = [parso.parse(source)]
    while nodes:  # in the order of cosmic-ray's visitor, which counts the places
        node = nodes.pop()
        nodes += reversed(getattr(node, "children", ()))
        for name, operator in operators.items():
            for start, _ in operator.mutation_positions(node):
                occurrence, seen[name] = seen[name], seen[name] + 1
                if not _pointless(name, node) and not any(first <= start < last for first, last in ignored):
                    yield Mutant(module, start[0], name, occurrence)


def _pointless(name: str, node: Any) -> bool:
    """Whether the fault shows in no result, or another operator makes it too."""
    if name == "AddNot":
        return node.children[2 if node.type == "test" else 1].type in {"comparison", "not_test"}
    if node.type == "operator" and getattr(node.parent, "type", "") == "parameters":
        return True  # the star before keywords is no product
    return name == "NumberReplacer" and abs(ast.literal_eval(node.value)) >= LARGE


def _ignored(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where a change proves nothing: types, texts, progress, checks of lengths, decorators."""
    for node in ast.walk(tree):
        parts: list[ast.expr | ast.stmt | None] = []
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                parts = [node]
            case ast.FunctionDef() | ast.ClassDef():
                parts = [*node.decorator_list, getattr(node, "returns", None)]
            case ast.arg() | ast.AnnAssign():
                parts = [node.annotation]
            case ast.Raise():
                parts = [node.exc]
            case ast.JoinedStr() | ast.Call(func=ast.Attribute(attr="stage" | "note" | "advance" | "say")):
                parts = [node]
            case ast.keyword(arg="strict"):
                parts = [node.value]
            case ast.BoolOp(values=[*_, before, ast.Constant(value="")]):  # `name or ""` is for the type checker
                yield (
                    (before.end_lineno or 0, before.end_col_offset or 0),
                    (node.end_lineno or 0, node.end_col_offset or 0),
                )
            case ast.Module():
                aliases = (part for part in node.body if isinstance(part, ast.Assign))
                parts = [alias for alias in aliases if isinstance(alias.value, ast.Subscript)]
        for part in parts:
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)


def sample(modules: Sequence[str], sources: dict[str, str], count: int, seed: int) -> list[Mutant]:
    """The first `count` mutants that are Python, in the order of their hashes: any first part is a sample too."""
    every = sorted((m for name in modules for m in mutants(name, sources[name])), key=lambda m: m.rank(seed))
    taken: list[Mutant] = []
    for mutant in every:
        if len(taken) == count:
            break
        try:
            compile(mutant.of(sources[mutant.module]), mutant.module, "exec")
        except SyntaxError:
            continue
        taken.append(mutant)
    return taken
