"""Every configuration field is mapped into exactly one group and read by the program: no dead options."""

import ast
import dataclasses
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest

from nlsq_nb.config import flat, groups
from nlsq_nb.config.given import config_from
from nlsq_nb.config.rules import Choice
from nlsq_nb.errors import ConfigError, UnsupportedOption

CONFIG = "nlsq_nb/config/"
GROUP_OF = {kind.__name__: group for group, kind in typing.get_type_hints(groups.Groups).items()}
Read = tuple[str, str]


def mapped_fields(module: ModuleType) -> list[tuple[str, str, str]]:
    """(group class, field, flat name) for each field of the module's dataclasses that has a flat name."""
    return [
        (group.__name__, field.name, field.metadata["flat"])
        for group in vars(module).values()
        if isinstance(group, type) and dataclasses.is_dataclass(group) and group.__module__ == module.__name__
        for field in dataclasses.fields(group)
        if "flat" in field.metadata
    ]


def mapping_faults(flat_names: Iterable[str], mapped: Iterable[tuple[str, str, str]]) -> list[str]:
    """What keeps the mapping from being a bijection."""
    count = Counter(name for _, _, name in mapped)
    names = set(flat_names)
    faults = [f"{name}: mapped by {count[name]} group fields, not by one" for name in sorted(names) if count[name] != 1]
    return faults + [f"{name}: not a field of HybridStreamingConfig" for name in sorted(count.keys() - names)]


def annotated_group(annotation: ast.expr | None) -> str | None:
    """The group that an annotation such as ``DataOptions`` or ``groups.DataOptions | None`` names."""
    for node in ast.walk(annotation) if annotation else ():
        name = identifier(node) if isinstance(node, ast.expr) else None
        if name in GROUP_OF:
            return GROUP_OF[name]
    return None


def identifier(node: ast.expr) -> str | None:
    """The last name of ``a`` or ``a.b``."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)


def group_named(node: ast.expr) -> str | None:
    """The group that ``options.<group>`` or ``self._options.<group>`` is."""
    if isinstance(node, ast.Attribute) and node.attr in GROUP_OF.values():
        return node.attr if (identifier(node.value) or "").lstrip("_") == "options" else None
    return None


def bound_names(scope: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, group) for the names that stand for a group: assigned from one, or annotated as one."""
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                pairs = list(zip(targets, values, strict=False))
            case ast.Assign(targets=[target], value=value):
                pairs = [(target, value)]
            case ast.arg(arg=name, annotation=note) | ast.AnnAssign(target=ast.Name(id=name), annotation=note):
                if group := annotated_group(note):
                    yield name, group
                continue
            case _:
                continue
        for target, value in pairs:
            if (group := group_named(value)) and (name := identifier(target)):
                yield name, group


def reads(scope: ast.AST, known: Mapping[str, str]) -> Iterator[Read]:
    """(group, field) for each ``options.<group>.<field>`` and each ``<name>.<field>`` of a name bound to a group."""
    names = {**known, **dict(bound_names(scope))}
    for node in ast.walk(scope):
        if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)):
            continue
        if group := group_named(node.value) or names.get(identifier(node.value) or ""):
            yield group, node.attr


def fields_read(modules: Mapping[str, ast.Module]) -> set[Read]:
    """(group, field) of what is read outside nlsq_nb/config/."""
    found: set[Read] = set()
    for path, tree in modules.items():
        if path.startswith(CONFIG):
            continue
        attributes = {
            name: group
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for name, group in bound_names(node)
            if is_attribute(node, name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found |= set(reads(node, attributes))
    return found


def is_attribute(owner: ast.ClassDef, name: str) -> bool:
    """Whether the name is a field of the class, or an attribute that its methods assign to."""
    fields = {getattr(node.target, "id", None) for node in owner.body if isinstance(node, ast.AnnAssign)}
    assigned = {
        node.attr for node in ast.walk(owner) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return name in fields | assigned


def other_values(name: str) -> list[Any]:
    """Values of a field other than its default: the other choices, else another number."""
    default = getattr(flat.HybridStreamingConfig(), name)
    group, field = groups.OWNERS[name]
    kind = typing.get_type_hints(groups.Groups)[group]
    rule = next(f.metadata["rule"] for f in dataclasses.fields(kind) if f.name == field)
    if isinstance(rule, Choice):
        return [choice for choice in rule.choices if choice is not default]
    return [type(default)(not default), 2 * default] if isinstance(default, bool | int | float) else []


def refused(name: str, group: Callable[[None, dict[str, Any]], object] = config_from) -> bool:
    """Whether asking for another value raises `UnsupportedOption` naming the field.

    Then nothing has to read the field: the values that are left describe what is done in any case. As soon as the
    refused value is honoured this ends, and the field must be read.
    """
    for value in other_values(name):
        try:
            group(None, {name: value})
        except UnsupportedOption as error:
            if str(error).startswith(f"{name}="):
                return True
        except ConfigError:
            continue
    return False


def test_flat_and_grouped_fields_are_a_bijection() -> None:
    flat_names = [field.name for field in dataclasses.fields(flat.HybridStreamingConfig)]
    assert flat_names
    faults = mapping_faults(flat_names, mapped_fields(groups))
    assert not faults, "\n".join(faults)


def test_every_field_is_read_outside_config(modules: dict[str, ast.Module]) -> None:
    read = fields_read(modules)
    dead = [
        f"{GROUP_OF[group]}.{field} ({name})"
        for group, field, name in mapped_fields(groups)
        if (GROUP_OF[group], field) not in read and not refused(name)
    ]
    assert not dead, "read nowhere outside nlsq_nb/config/:\n" + "\n".join(dead)


def test_groups_are_frozen() -> None:
    owners = {group for group, _, _ in mapped_fields(groups)}
    thawed = [name for name in owners if not getattr(groups, name).__dataclass_params__.frozen]
    assert not thawed


@pytest.mark.parametrize(
    ("mapped", "faults"),
    [
        ([("G", "a", "a"), ("G", "b", "b")], 0),
        ([("G", "a", "a")], 1),
        ([("G", "a", "a"), ("G", "b", "b"), ("H", "b", "b")], 1),
        ([("G", "a", "a"), ("G", "b", "b"), ("H", "c", "c")], 1),
    ],
)
def test_faults_are_found(mapped: list[tuple[str, str, str]], faults: int) -> None:
    assert len(mapping_faults(["a", "b"], mapped)) == faults


def test_only_reads_outside_config_count() -> None:
    outside = ast.parse("def f(options, other):\n    options.data.written = 1\n    return options.data.read, other.by")
    trees = {f"{CONFIG}groups.py": ast.parse("def f(o): return o.data.inside"), "nlsq_nb/phases/a.py": outside}
    assert fields_read(trees) == {("data", "read")}


@pytest.mark.parametrize(
    "source",
    [
        "def f(options): return options.cg.rtol",
        "def f(self):\n    o = self._options.cg\n    return o.rtol",
        "def f(options):\n    a, b = options.data, options.cg\n    return b.rtol",
        "def f(o: ConjugateOptions): return o.rtol",
        "def f(o: groups.ConjugateOptions | None): return o.rtol",
        "class A:\n    given: ConjugateOptions\n    def f(self): return self.given.rtol",
        "class A:\n    def __init__(self, options): self._o = options.cg\n    def f(self): return self._o.rtol",
    ],
)
def test_the_ways_to_read_a_field_are_seen(source: str) -> None:
    read = fields_read({"nlsq_nb/phases/a.py": ast.parse(source)})
    assert ("cg", "rtol") in read
    assert all(group == "cg" for group, field in read if field == "rtol")


def test_a_field_of_the_same_name_in_another_group_does_not_count() -> None:
    source = "def f(options):\n    o = options.cg\n    return o.rtol\ndef g(o, state): return o.tol, state.cg.atol"
    assert fields_read({"nlsq_nb/phases/a.py": ast.parse(source)}) == {("cg", "rtol")}


def test_only_what_is_refused_by_name_need_not_be_read() -> None:
    assert refused("use_learning_rate_schedule")
    assert refused("lr_schedule_decay_steps")
    assert not refused("chunk_size")
    assert not refused("enable_group_variance_regularization")  # refused for want of ranges, not for good

    def refuse_namelessly(base: None, options: dict[str, Any]) -> None:
        raise UnsupportedOption("not here")

    assert not refused("use_learning_rate_schedule", refuse_namelessly)
