"""Kernels compiled for devices that are not there: what their PTX must not hold, registers, spills."""

import pytest

from nlsq_nb import Model

from ..emulator.offline import assemble, compile_kernel

DECAY = "a*exp(-b*x) + c"


@pytest.fixture(autouse=True)
def _on_the_stand_in(driver):
    return driver


def gaussians(count):
    return Model(" + ".join(f"a{k}*exp(-((x - m{k})/s{k})**2)" for k in range(count))).program


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
@pytest.mark.parametrize("peaks", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_nothing_is_spilled_up_to_nine_parameters(peaks, cc):
    text = compile_kernel(gaussians(peaks), "sums2", cc)
    assert f".target sm_{cc[0]}{cc[1]}" in text
    for banned in ("shfl", "\tatom.", "\tred.", "\tvote", "cvt.rn.f32.f64"):
        assert banned not in text
    found = assemble(text, cc)
    assert found["spilled"] == 0
    assert found["registers"] <= (96, 128, 232)[peaks - 1]


@pytest.mark.slow
@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_groups_of_sums_are_not_spilled(cc):
    text = compile_kernel(gaussians(4), "sums2_1", cc)
    assert assemble(text, cc)["spilled"] == 0


def test_float32_is_widened_when_it_is_read():
    text = compile_kernel(Model(DECAY).program, "sums2", (9, 0), "float32", weighted=True)
    assert text.count("cvt.f64.f32") == text.count("ld.global.b32") + text.count("ld.global.f32") > 0
    assert "mul.f32" not in text
    assert "mul.rn.f32" not in text


def test_what_depends_on_parameters_only_is_computed_once():
    from ..emulator.offline import loop_of

    loop = loop_of(compile_kernel(Model("a*exp(-x/b**2) + x*sin(c)/exp(d)").program, "sums2", (9, 0)))
    assert loop
    assert not [op for op in loop if op.startswith(("div", "call"))]
