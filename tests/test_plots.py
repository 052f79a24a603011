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


SIZES = pd.DataFrame({"parameters": [1e5, 2e5, 5e5, 1e6, 4e6], "treatment": list("abcde"), "seed": 0})
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


MEANS = pd.DataFrame(
    {
        "treatment": ["a", "b"],
        "n": [3, 3],
        "mean": [1.5, 2.0],
        "low": [1.4, 1.8],
        "high": [1.6, 2.2],
        "optimizer.lr": [0.01, 0.001],
        "model": ["LSTMLM", "TransformerLM"],
    }
)
ALONE = MEANS.assign(n=1, low=None, high=None)
OVER_TIME = pd.concat(
    [MEANS.assign(tokens=1000 * step, compute=1e9 * step, seconds=step, step=step) for step in (1, 2)]
)


@pytest.mark.parametrize("table", [MEANS, ALONE], ids=["replicates", "single runs"])
def test_figures_of_replicates_show_means_units_and_intervals_where_there_are_any(table):
    ax = plots.intervals(table, ["optimizer.lr"])
    dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in dots] == [2.0, 1.5], "the best on top"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["lr=0.001", "lr=0.01"]
    bars = [list(line.get_xdata()) for line in ax.get_lines() if line.get_marker() != "o"]
    assert bars == ([[1.8, 2.2], [1.4, 1.6]] if table is MEANS else [])
    assert "bits per byte" in ax.get_xlabel()
    ax = plots.against(table, "optimizer.lr")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.001", "0.01"]
    assert "bits per byte" in ax.get_ylabel()


def test_a_second_key_has_a_line_for_each_of_its_values():
    ax = plots.against(MEANS, "optimizer.lr", by="model")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["model=LSTMLM", "model=TransformerLM"]


@pytest.mark.parametrize(
    ("x", "label"),
    [
        ("tokens", "training tokens seen"),
        ("seconds", "seconds of training"),
        ("compute", "training computation (6 N D operations)"),
    ],
)
def test_mean_curves_have_a_band_and_a_line_for_each_treatment(x, label):
    ax = plots.mean_curves(OVER_TIME, "model", x)
    assert (len(ax.get_lines()), len(ax.collections)) == (2, 2)
    assert ax.get_xlabel() == label
    assert "95%" in ax.get_title()
    assert "95%" not in plots.mean_curves(OVER_TIME.assign(n=1, low=None, high=None), "model", x).get_title()


def test_years_show_every_document_and_the_means():
    table = pd.DataFrame({"split": ["train", "val"], "year": [1790, 2020], "ppl": [80.0, 120.0]})
    means = pd.DataFrame(
        {"first": [1790, 2020], "last": [1799, 2029], "mean": [80.0, 120.0], "low": [70.0, None], "high": [90.0, None]}
    )
    ax = plots.by_year(table, means)
    assert len(ax.collections[0].get_offsets()) == len(ax.collections[1].get_offsets()) == 1
    assert ax.get_ylabel() == "perplexity per token"
