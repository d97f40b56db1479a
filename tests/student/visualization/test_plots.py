import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from student.evaluation.results import Losses
from student.visualization.plots import (
    plot_error_histograms,
    plot_losses,
    plot_metrics,
    plot_precision_recall,
    save_evaluation_plots,
    smooth,
)


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_precision_over_recall_of_several(evaluations) -> None:
    results = [found for found, _ in evaluations.values()]
    figure = drawn(plot_precision_recall(results))
    axes = {axes.get_title(): axes for axes in figure.axes}
    assert len(axes) == 10
    assert labels(axes["car"]) == [f"{each.name}: {each.metrics.class_ap['car']:.3f}" for each in results]
    recall, precision = axes["car"].lines[0].get_data()
    np.testing.assert_array_equal(precision, results[0].curves["car", 2.0].precision[: len(precision)])
    assert (precision > 0).all()
    assert len(recall) > 50


def test_one_evaluation_shows_all_distances(evaluations) -> None:
    (found, _), *_ = evaluations.values()
    axes = next(axes for axes in plot_precision_recall([found]).axes if axes.get_title() == "car")
    assert len(axes.lines) == 4


def test_histograms_of_errors(evaluations) -> None:
    results = [found for found, _ in evaluations.values()]
    translation = drawn(plot_error_histograms(results)).axes[0]
    assert labels(translation) == ["good: median 0.10", "poor: median 1.00"]
    heights = [patch.get_xy()[:, 1].max() for patch in translation.patches]
    assert all(0 < height <= 1 + 1e-9 for height in heights)


def test_metrics_side_by_side(evaluations) -> None:
    results = [found for found, _ in evaluations.values()]
    scores, errors, classes = drawn(plot_metrics(results)).axes
    heights = [bar.get_height() for bar in scores.patches]
    assert heights == [value for each in results for value in (each.metrics.mean_ap, each.metrics.nds)]
    assert len(errors.patches) == 2 * 5
    assert labels(classes) == ["good", "poor"]


def test_training_curves_by_step() -> None:
    steps = np.arange(100.0)
    runs = {
        "alone": {"boxes": Losses(steps=steps, values=np.ones(100))},
        "distilled": {
            "boxes": Losses(steps=steps, values=np.ones(100)),
            "distill/fgd": Losses(steps=steps, values=steps + 1),
        },
    }
    own, terms = drawn(plot_losses(runs)).axes
    assert labels(own) == ["alone, boxes", "distilled, boxes"]
    assert labels(terms) == ["distilled, fgd"]
    shown_steps, values = terms.lines[0].get_data()
    np.testing.assert_allclose(values, shown_steps + 0.5, err_msg="a mean of two, at the later one's step")
    assert len(drawn(plot_losses({"alone": runs["alone"]})).axes) == 1


def test_a_running_mean_by_hand() -> None:
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0]), 2), [1.5, 4.0])


def test_an_evaluation_is_drawn_into_its_folder(evaluations, made_frames) -> None:
    found, _ = evaluations["good"]
    written = save_evaluation_plots(found.folder, made_frames)
    names = {"precision_recall", "errors", *(f"boxes_{token}" for token in made_frames.tokens)}
    assert {path.stem for path in written} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
