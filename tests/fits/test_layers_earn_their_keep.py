"""Each defence layer has fits on which it fires and which are worse without it; bench/layers.py tables them."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load():
    spec = importlib.util.spec_from_file_location("bench_layers", ROOT / "bench" / "layers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


layers = _load()
CASES = [pytest.param(case, id=f"layer {case.layer}: {case.story[:40]}") for case in layers.CASES]


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    case = request.param
    return case, case.run(), case.run(case.layer)


def test_every_layer_has_a_case():
    assert {case.layer for case in layers.CASES} == {1, 2, 3, 4}
    assert {case.layer for case in layers.CASES if case.claim == "point"} >= {3, 4}


def test_the_layer_fires_and_only_where_it_is_on(pair):
    case, on, off = pair
    assert on.fired[case.layer] > 0
    assert off.fired[case.layer] == 0


def test_the_fit_is_right_with_the_layer(pair):
    case, on, _ = pair
    problem = case.problem
    truth = [problem.truth[name] for name in problem.model.params]
    best = layers.fit(problem.model, *problem.data(), truth, method="lm")
    assert on.success
    assert on.sse == pytest.approx(best.sse, rel=1e-8)


def test_the_fit_is_worse_without_it(pair):
    case, on, off = pair
    if case.claim == "passes":
        assert off.passes >= 1.2 * on.passes
        assert off.sse == pytest.approx(on.sse, rel=1e-6)
    else:
        assert off.sse > 1.5 * on.sse
    assert case.holds(on, off)


@pytest.mark.parametrize("case", CASES)
def test_other_noise_tells_the_same(case):
    """Of three, one may be so kind that the fit gets there without the layer."""
    held = [case.holds(case.run(seed=seed), case.run(case.layer, seed=seed)) for seed in (1, 2, 3)]
    assert sum(held) >= 2


def test_the_page_names_every_case():
    page = layers.PAGE.read_text("utf-8")
    for case in layers.CASES:
        assert f"| {case.layer} | {case.story} | {case.configuration} |" in page
