"""Every configuration field is mapped into exactly one group and read by the program: no dead options."""

import ast
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from types import ModuleType

import pytest

from nlsq_nb.config import flat, groups

CONFIG = "nlsq_nb/config/"


def mapped_fields(module: ModuleType) -> list[tuple[str, str, str]]:
    """(group, field, flat name) for each field of the module's dataclasses that carries the flat name as metadata."""
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


def attributes_read(modules: Mapping[str, ast.Module]) -> set[str]:
    """Names read as ``<group>.<name>`` outside nlsq_nb/config/, where the group is `o` or an attribute of `Groups`."""
    owners = {field.name for field in dataclasses.fields(groups.Groups)}
    return {
        node.attr
        for path, tree in modules.items()
        if not path.startswith(CONFIG)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        if (isinstance(node.value, ast.Name) and node.value.id == "o")
        or (isinstance(node.value, ast.Attribute) and node.value.attr in owners)
    }


def test_flat_and_grouped_fields_are_a_bijection() -> None:
    flat_names = [field.name for field in dataclasses.fields(flat.HybridStreamingConfig)]
    assert flat_names
    faults = mapping_faults(flat_names, mapped_fields(groups))
    assert not faults, "\n".join(faults)


def test_every_field_is_read_outside_config(modules: dict[str, ast.Module]) -> None:
    read = attributes_read(modules)
    dead = [f"{group}.{field} ({name})" for group, field, name in mapped_fields(groups) if field not in read]
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
    outside = ast.parse("o.read\no.written = 1\noptions.data.read_too\nself.its_own")
    trees = {f"{CONFIG}groups.py": ast.parse("o.inside"), "nlsq_nb/phases/a.py": outside}
    assert attributes_read(trees) == {"read", "read_too"}
