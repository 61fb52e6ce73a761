"""The frontier drawn: on the terminal, and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop import drawing, laws
from isoflop.drawing import APART, HEIGHTS, WIDTH, by_difficulty, picture, terminal
from isoflop.errors import FailedPrecondition, InvalidArgument
from isoflop.text import Style
from isoflop.v1.router_pb2 import (
    Action,
    FrontierPoint,
    GetFrontierResponse,
    ScalingInterval,
    ScalingLaw,
    ScalingPoint,
)

Plan = tuple[str, float, float]


def frontier(lines: dict[float, list[Plan]]) -> GetFrontierResponse:
    return GetFrontierResponse(
        profile="p1",
        points=[
            FrontierPoint(
                difficulty=difficulty,
                action=Action(model=model, samples=1, expected_flops=flops, expected_accuracy=right),
            )
            for difficulty, plans in lines.items()
            for model, flops, right in plans
        ],
    )


TWO = frontier({-1.0: [("small", 1e6, 0.5), ("large", 1e8, 1.0)], 2.0: [("large", 1e9, 0.2)]})
MANY = frontier({float(d): [("m", 1e6, 1 - d / 40)] for d in range(40)})


def test_each_column_shows_the_best_plan_at_its_price() -> None:
    lines = terminal(TWO, Style())
    assert lines[0].index("|10 MFLOPs") - 12 == WIDTH // 3
    heights, models = lines[1][12 : 12 + WIDTH], lines[2][12:]
    # From 1 M to 1 G: two thirds of the way the second plan is there.
    share = sum(model == "a" for model in models) / WIDTH
    assert share == pytest.approx(2 / 3, abs=0.03)
    assert set(heights) == {HEIGHTS[4], HEIGHTS[7]}
    assert lines[1].endswith("100%")
    # The dearest plan of all is in the last column.
    assert lines[3][12 : 12 + WIDTH] == " " * (WIDTH - 1) + HEIGHTS[1]
    assert lines[-1].endswith("its model: a small, b large")
    assert "\x1b" not in "".join(lines)


def test_without_block_characters_there_are_digits_and_with_colour_colours() -> None:
    plain = terminal(TWO, Style(), plain=True)
    assert set(plain[1][12 : 12 + WIDTH]) == {"5", "9"}
    assert "".join(plain).isascii()
    assert "\x1b[34m" in terminal(TWO, Style(colour=True))[1]


def test_where_nothing_is_measured_that_is_said(tmp_path: Path) -> None:
    (said,) = terminal(GetFrontierResponse(), Style())
    assert "no frontier" in said
    with pytest.raises(FailedPrecondition, match="no frontier"):
        picture(GetFrontierResponse(), tmp_path / "f.png")


def test_difficulties_are_chosen_by_what_is_in_reach() -> None:
    chosen = [difficulty for difficulty, _ in by_difficulty(MANY, 5)]
    assert (len(chosen), chosen[0], chosen[-1]) == (5, 0.0, 39.0)
    assert chosen == sorted(chosen)
    flat = frontier({float(d): [("m", 1e6, 1.0 if d < 38 else 0.1)] for d in range(40)})
    assert [difficulty for difficulty, _ in by_difficulty(flat, 5)] == [0.0, 38.0]
    assert len(by_difficulty(TWO, 5)) == 2


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_do_not_cover_each_other(tops: list[float]) -> None:
    heights = drawing._apart(tops)
    ordered = sorted(heights)
    assert all(b - a >= APART - 1e-9 for a, b in pairwise(ordered))
    assert min(heights) >= 0
    pairs = sorted(zip(tops, heights, strict=True))
    assert all(low[1] <= high[1] for low, high in pairwise(pairs) if low[0] < high[0])


def test_a_picture_is_written(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    picture(TWO, tmp_path / "frontier.png")
    pixels = image.imread(tmp_path / "frontier.png")
    height, width, channels = pixels.shape
    assert width > height > 400
    assert channels == 4
    alpha = pixels[..., 3]
    assert (alpha == 0).mean() > 0.8  # The ground is whatever the page's is.
    # Ink has contrast with white and with black: WCAG asks for 3 of what is drawn.
    drawn = pixels[alpha > 0.95][:, :3]
    linear = ((drawn + 0.055) / 1.055) ** 2.4
    light = linear @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (light + 0.05)).min() >= 2.5
    assert ((light + 0.05) / 0.05).min() >= 3


def law(model: str, which: int | None, way: tuple[str, str] = ("majority", ""), **more: Any) -> ScalingLaw:
    fields: dict[str, Any] = {
        "model": model,
        "strategy": way[0],
        "verifier": way[1],
        "queries": 90,
        "form": "saturating",
        "points": [ScalingPoint(samples=n, accuracy=0.2 + n / 20) for n in (1, 2, 4, 8)],
        "best_samples": 8,
    }
    if which is not None:
        fields |= {"easiest": which - 1.0, "hardest": which - 0.25}
    return ScalingLaw(**(fields | more))


def of_models(count: int, ways: Sequence[tuple[str, str]] = (("majority", ""),)) -> list[ScalingLaw]:
    return [law(f"m{at}", which, way) for at in range(count) for way in ways for which in (None, 0, 1, 2)]


def drawn(told: Sequence[ScalingLaw]) -> Any:
    size = (drawing.WIDE, laws.ROW * laws.rows(told))
    figure = pytest.importorskip("matplotlib.figure").Figure(size, layout="constrained")
    laws.draw(figure, told, {"m0": "#3d8fd1"}, drawing.INK)
    figure.draw_without_rendering()
    return figure


def test_the_picture_grows_by_the_panels_of_the_laws(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    two = GetFrontierResponse(points=TWO.points, profile="p1")
    heights = []
    for told in ([], of_models(3), of_models(3, [("majority", ""), ("weighted", "v")]), of_models(5)):
        del two.laws[:]
        two.laws.extend(told)
        picture(two, tmp_path / "f.png")
        heights.append(image.imread(tmp_path / "f.png").shape[0])
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_each_model_and_strategy_has_a_panel_with_a_line_for_each_bin() -> None:
    figure = drawn(of_models(6, [("majority", ""), ("weighted", "v"), ("weighted", "w")]))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert (len(figure.axes), len(shown)) == (24, 18)
    assert [axes.get_title() for axes in shown if axes.get_title()] == [f"m{at}" for at in range(6)]
    assert [axes.get_ylabel() for axes in shown if axes.get_ylabel()] == 2 * [
        "majority, %", "weighted\nby v, %", "weighted\nby w, %",
    ]  # fmt: skip
    for axes in shown:
        assert [line.is_dashed() for line in axes.lines] == [False, True, True, True]
    assert len(set(laws.DASHES)) == 3
    assert {line.get_color() for line in shown[0].lines} == {"#3d8fd1"}
    assert {line.get_color() for line in shown[1].lines} == {drawing.INK}  # It is not on the frontier.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "all queries",
        "easy third: -1.00 to -0.25",
        "middle third: +0.00 to +0.75",
        "hard third: +1.00 to +1.75",
    ]


def test_nothing_of_the_panels_is_cut_off() -> None:
    figure = drawn(of_models(3, [("majority", ""), ("weighted", "v"), ("best_of_n", "v")]))
    box = figure.bbox
    titles = [axes.title for axes in figure.axes if axes.get_title()]
    assert (len(titles), len(figure.texts)) == (3, 1)
    for artist in (figure.legends[0], *figure.texts, *titles):
        extent = artist.get_window_extent()
        assert box.x0 <= extent.x0 < extent.x1 <= box.x1
        assert box.y0 <= extent.y0 < extent.y1 <= box.y1


def test_ceilings_intervals_and_falls_are_drawn() -> None:
    interval = ScalingInterval(low=0.5, high=0.7)
    bare, bounded = law("m0", None), law("m0", None, interval=interval)
    capped = law("m0", None, ceiling=0.6, ceiling_interval=interval)
    marks = [drawn([one]).axes[0].lines[1:] for one in (bare, bounded, capped, law("m0", None, falls=True))]
    assert [len(lines) for lines in marks] == [0, 1, 3, 1]
    assert list(marks[1][0].get_ydata()) == pytest.approx([50, 70])
    assert [list(line.get_ydata()) for line in marks[2][1:]] == [pytest.approx([60]), pytest.approx([50, 70])]
    assert marks[2][1].get_xdata()[0] > 8
    assert marks[3][0].get_marker() == "v"
    told = [text.get_text() for text in drawn([law("m0", None, falls=True)]).legends[0].get_texts()]
    assert told == ["all queries", "less from there on"]


def test_bins_have_names_or_numbers() -> None:
    for count, first in ((1, "bin 1 of 1"), (2, "easy half"), (4, "bin 1 of 4")):
        figure = drawn([law("m0", which) for which in range(count)])
        assert figure.legends[0].get_texts()[1].get_text().startswith(f"{first}: -1.00")


def test_a_picture_has_to_be_a_png_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="must end in"):
        picture(TWO, tmp_path / "frontier.svg")
    with pytest.raises(OSError, match="No such file"):
        picture(TWO, tmp_path / "none" / "frontier.png")


def test_without_matplotlib_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'isoflop\[picture\]'"):
        picture(TWO, tmp_path / "frontier.png")
