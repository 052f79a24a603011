"""Figures say what they show, and show the numbers that they were given."""

import matplotlib as mpl

mpl.use("agg")

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from lmlab import plots
from lmlab.runs import scaling_law

CURVES = pd.DataFrame(
    {
        "step": [10, 20, 30],
        "tokens": [50_000, 100_000, 1_500_000],
        "val/loss": [3.0, 2.0, 2.5],
        "train/eval_loss": [3.0, 1.8, 1.2],
    }
)
RESULTS = {
    "splits": {"test": {"bpb": 1.5}},
    "floors": {"unigram": {"test": {"bpb": 3.0}}, "kneser_ney_5": {"test": {"bpb": 1.9}}},
}
TOKENS = pd.DataFrame(
    {"token": [" the", "\n", "$5$", "明"], "log_prob": [-0.5, -1.0, -2.0, -4.0], "rank": [1, 2, 3, 9]}
)
GIVEN = {"learning_curves": {"curves": CURVES}, "beside_floors": {"results": RESULTS}, "surprisal": {"tokens": TOKENS}}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


SIZES = pd.DataFrame({"parameters": [1e5, 2e5, 5e5, 1e6, 4e6], "treatment": list("abcde")})
SIZES["val/bpb"] = 1.5 + 200 / SIZES["parameters"] ** 0.5
GIVEN["scaling"] = {"table": SIZES, "law": scaling_law(SIZES)}


def draw(name, **given):
    return getattr(plots, name)(**GIVEN[name] | given)


@pytest.mark.parametrize("name", GIVEN)
def test_each_figure_has_a_title_and_units_and_draws_where_it_is_told(name):
    ax = draw(name)
    assert ax.get_title()
    assert any(unit in ax.get_xlabel() + ax.get_ylabel() for unit in ("nats", "bits"))
    _, mine = plt.subplots()
    assert draw(name, ax=mine) is mine


def test_learning_curves_show_both_splits_and_mark_the_lowest_loss():
    ax = draw("learning_curves")
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[3.0, 2.0, 2.5], [3.0, 1.8, 1.2]]
    assert [text.get_text() for text in ax.texts] == ["2.000"]
    assert ax.xaxis.get_major_formatter()(1_500_000, 0) == "1.5M"


def test_curves_without_a_validation_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        draw("learning_curves", curves=CURVES[:0])


def test_the_model_stands_beside_its_floors_of_the_same_split():
    ax = draw("beside_floors")
    assert [bar.get_width() for bar in ax.patches] == [3.0, 1.9, 1.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["unigram", "Kneser-Ney 5-gram", "this model"]
    with pytest.raises(ValueError, match="split=val was not measured"):
        draw("beside_floors", split="val")


def test_surprisal_is_in_bits_and_its_labels_can_be_read():
    ax = draw("surprisal")
    assert ax.patches[1].get_height() == pytest.approx(1 / 0.6931471805599453)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["␣the", r"\n", r"\$5\$", "明"]


def test_the_law_is_drawn_through_the_runs_and_beyond():
    ax = draw("scaling")
    solid, dashed = ax.get_lines()
    assert solid.get_label() == "1.5 + 200 / N^0.5"
    for line in (solid, dashed):
        assert line.get_ydata() == pytest.approx(1.5 + 200 / line.get_xdata() ** 0.5, rel=1e-4)
    assert dashed.get_xdata().max() == pytest.approx(3 * 4e6)
    assert ax.get_xscale() == "log"
