"""Figures show what the arrays hold: the right slices, windows, colours and numbers."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import nibabel as nb
import numpy as np
import pytest
from matplotlib import colors, patches
from matplotlib.contour import ContourSet
from PIL import Image

from dwmri_bidsapp.errors import InputOutputError
from dwmri_bidsapp.figures import (
    charts,
    colour_fa,
    fsl_to_world,
    make_run_figures,
    pictures,
    plan_slices,
    svg,
)
from dwmri_bidsapp.figures import volumes as volume_charts
from dwmri_bidsapp.figures.statistics import (
    representative_volumes,
    run_statistics,
    shells_to_show,
)
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.metrics import TensorMaps

LAS = np.diag([-2.0, 2.0, 2.0, 1.0])
RAS = np.diag([2.0, 2.0, 2.0, 1.0])
ORIENTATIONS = ["RAS", "LAS", "LPI", "PSR", "ILA"]
SHAPE = (12, 14, 10)
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def affine_of(codes: str, size: float = 2.0) -> np.ndarray:
    """An affine whose array axes point along the codes."""
    linear = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        world, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[code]
        linear[world, axis] = sign * size
    return nb.affines.from_matvec(linear)


def make_run(seed: int = 0) -> SimpleNamespace:
    """A small run: 2 b=0 and 8 directions at b=1000, noise of standard deviation 5 taken away exactly."""
    rng = np.random.default_rng(seed)
    bvecs = rng.standard_normal((10, 3))
    gradients = Gradients.from_arrays([0, 0] + [1000] * 8, bvecs / np.linalg.norm(bvecs, axis=1)[:, None])
    clean = np.where(gradients.b0, 200.0, 100.0) + rng.uniform(0, 50, (*SHAPE, 1))
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:-2, 2:-2, 2:-2] = True
    sigma = np.full(SHAPE, 5.0, dtype=np.float32)
    noisy = clean + sigma[..., None] * rng.standard_normal((*SHAPE, 10))
    return SimpleNamespace(
        noisy=noisy.astype(np.float32),
        denoised=clean.astype(np.float32),
        sigma=sigma,
        mask=mask,
        gradients=gradients,
    )


def tensor_maps(fa: float, direction: tuple[float, float, float], mask: np.ndarray) -> TensorMaps:
    zeros = np.zeros(mask.shape, dtype=np.float32)
    return TensorMaps(
        zeros + fa,
        zeros + 1e-3,
        np.broadcast_to(np.array(direction, dtype=np.float32), (*mask.shape, 3)),
        mask,
    )


def drawn(axes: Any) -> list[np.ndarray]:
    """Points of each line of a chart, (n, 2)."""
    return [np.asarray(line.get_xydata(), dtype=float) for line in axes.get_lines()]


def embedded_pictures(element: ElementTree.Element) -> list[np.ndarray]:
    """Decode the rasters below an element, in order."""
    found = []
    for image in element.iter(f"{SVG}image"):
        data = base64.b64decode(image.attrib[HREF].partition("base64,")[2])
        found.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return found


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_directions_in_the_world_do_not_depend_on_how_the_image_is_stored(codes: str) -> None:
    affine = affine_of(codes)
    world = np.array([0.6, 0.0, 0.8])
    # The definition of FSL: components along the axes of a radiological image, so x flips if it is not one.
    stored = np.linalg.inv(affine[:3, :3] / 2.0) @ world
    if np.linalg.det(affine[:3, :3]) > 0:
        stored[0] = -stored[0]

    np.testing.assert_allclose(fsl_to_world(stored, affine), world, atol=1e-12)


def test_directions_of_an_oblique_image_turn_with_it() -> None:
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = nb.affines.from_matvec(turn @ np.diag([-1.5, 2.0, 4.0]))

    # The first axis of a radiological image: to the left, turned by 30 degrees.
    np.testing.assert_allclose(fsl_to_world(np.array([1.0, 0, 0]), affine), turn @ [-1, 0, 0], atol=1e-12)


def test_a_bvec_file_and_nibabel_agree_on_two_storages_of_one_scan() -> None:
    """Flipping the first array axis changes the affine, and leaves FSL's vectors as they are."""
    vectors = np.array([[0.5, 0.5, np.sqrt(0.5)], [1, 0, 0]])

    np.testing.assert_allclose(fsl_to_world(vectors, LAS), fsl_to_world(vectors, RAS))


@pytest.mark.parametrize(
    ("direction", "colour"), [((1, 0, 0), (1, 0, 0)), ((0, -1, 0), (0, 1, 0)), ((0, 0, 1), (0, 0, 1))]
)
def test_colours_say_left_right_red_front_back_green_up_down_blue(direction: tuple, colour: tuple) -> None:
    rgb = colour_fa(
        np.full((1, 1, 1), 0.4), np.array(direction, dtype=float)[None, None, None], brightness=1.0
    )

    np.testing.assert_allclose(rgb[0, 0, 0], 0.4 * np.array(colour), atol=1e-6)


def test_the_colour_picture_shows_a_tract_along_world_x_red_in_every_storage(tmp_path: Path) -> None:
    run = make_run()
    for codes in ("LAS", "PSR"):
        affine = affine_of(codes)
        stored = np.linalg.inv(affine[:3, :3] / 2.0) @ np.array([1.0, 0, 0])
        maps = tensor_maps(0.6, tuple(stored), run.mask)
        files = make_run_figures(
            run.noisy, run.denoised, run.sigma, run.mask, run.gradients, affine,
            tensors_before=maps, tensors_after=maps, out_dir=tmp_path, prefix=codes,
        )  # fmt: skip
        picture = embedded_pictures(ElementTree.parse(files["colourfa"]).getroot())[0]

        brightest = picture.reshape(-1, 3).max(axis=0)
        assert brightest[0] == round(255 * 0.6 * 1.25)
        assert brightest[1] == brightest[2] == 0


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_slices_stand_upright_left_on_the_left_and_front_on_the_right(codes: str) -> None:
    """A voxel at right, front and top is found at the right end and on top, however the array is stored."""
    world = np.zeros((10, 12, 14), dtype=np.float32)
    world[8, 10, 12] = 1.0
    image = nb.Nifti1Image(world, RAS)
    target = nb.orientations.axcodes2ornt(codes)
    stored = image.as_reoriented(nb.orientations.ornt_transform(nb.io_orientation(RAS), target))
    mask = np.ones(stored.shape, dtype=bool)
    plan = plan_slices(mask, stored.affine, n_slices=1)
    plan.indices.update(axial=np.array([12]), coronal=np.array([10]), sagittal=np.array([8]))
    data = np.asarray(stored.dataobj)

    assert np.argwhere(plan.strip(data, "axial") == 1).tolist() == [[1, 9]]
    assert np.argwhere(plan.strip(data, "coronal") == 1).tolist() == [[1, 9]]
    assert np.argwhere(plan.strip(data, "sagittal") == 1).tolist() == [[1, 10]]


def test_slices_are_inside_the_brain_and_crumbs_of_the_mask_get_none() -> None:
    mask = np.zeros((40, 40, 40), dtype=bool)
    mask[10:30, 10:30, 10:20] = True
    mask[20, 20, 38] = True

    plan = plan_slices(mask, RAS, n_slices=5)

    assert plan.indices["axial"].min() >= 10
    assert plan.indices["axial"].max() < 20
    assert plan.box[2].stop == 40


def test_voxels_that_are_not_cubes_keep_their_shape() -> None:
    mask = np.ones((20, 20, 10), dtype=bool)
    plan = plan_slices(mask, np.diag([1.0, 1.0, 3.0, 1.0]), n_slices=3)

    figure = pictures.map_picture(mask.astype(float), plan, window=(0, 1), title="")

    axial, coronal, _ = (axes.get_window_extent() for axes in figure.axes)
    assert coronal.height / axial.height == pytest.approx(30 / 20)
    assert axial.width / axial.height == pytest.approx(3 * 20 / 20)


def test_an_empty_mask_shows_the_whole_image() -> None:
    plan = plan_slices(np.zeros((8, 9, 10), dtype=bool), RAS)

    assert [part.stop - part.start for part in plan.box] == [8, 9, 10]


def test_the_mask_of_a_single_slice_is_outlined_where_it_has_an_area() -> None:
    mask = np.zeros((8, 9, 1), dtype=bool)
    mask[2:6, 2:7] = True
    figure = pictures.map_picture(
        mask.astype(float), plan_slices(mask, RAS, n_slices=1), window=None, title="", outline_xyz=mask
    )
    outlined = [any(isinstance(drawn, ContourSet) for drawn in axes.get_children()) for axes in figure.axes]
    assert outlined == [True, False, False]


def test_flicker_holds_two_pictures_of_one_window_that_differ() -> None:
    run = make_run()
    plan = plan_slices(run.mask, LAS)
    window = pictures.window_of(run.noisy[..., 5], run.mask)

    before, after = pictures.before_after(run.noisy[..., 5], run.denoised[..., 5], plan, window)
    limits = [axes.get_images()[0].get_clim() for figure in (before, after) for axes in figure.axes]
    root = ElementTree.fromstring(svg.flicker(before, after, "flickerB1000", "two pictures"))
    groups = {
        group.get("class"): embedded_pictures(group) for group in root.iter(f"{SVG}g") if group.get("class")
    }

    assert set(limits) == {window}
    assert len(groups["foreground-svg"]) == len(groups["background-svg"]) == 3
    for shown, hidden in zip(groups["foreground-svg"], groups["background-svg"], strict=True):
        assert shown.shape == hidden.shape
        assert not np.array_equal(shown, hidden)


def test_flicker_shows_the_denoised_run_on_top() -> None:
    run = make_run()
    plan = plan_slices(run.mask, LAS)
    pair = pictures.before_after(run.noisy[..., 5] * 0, run.noisy[..., 5] * 0 + 9, plan, (0.0, 9.0))

    root = ElementTree.fromstring(svg.flicker(*pair, "f", "x"))
    groups = [group for group in root.iter(f"{SVG}g") if group.get("class")]

    assert [group.get("class") for group in groups] == ["background-svg", "foreground-svg"]
    assert [embedded_pictures(group)[0].max() for group in groups] == [0, 255]
    assert "BEFORE" in "".join(groups[0].itertext())
    assert "AFTER" in "".join(groups[1].itertext())


def test_the_residual_is_shown_around_mid_grey() -> None:
    plan = plan_slices(np.ones((6, 6, 6), dtype=bool), RAS, n_slices=1)
    residual = np.zeros((6, 6, 6), dtype=np.float32)

    figure = pictures.residual_picture(residual, plan, "", limit=3.0)

    assert {axes.get_images()[0].get_clim() for axes in figure.axes[:3]} == {(-3.0, 3.0)}
    picture = embedded_pictures(ElementTree.fromstring(svg.to_svg(figure, "r", "x")))[0]
    assert abs(int(picture.min()) - 128) <= 1
    assert abs(int(picture.max()) - 128) <= 1


def test_statistics_find_the_noise_that_was_taken_away() -> None:
    run = make_run()
    shell = run.gradients.shell

    found = run_statistics(run.noisy, run.denoised, run.sigma, run.mask, shell, [0, 1])

    residual = (run.noisy - run.denoised)[run.mask] / 5.0
    np.testing.assert_allclose(found.residual_std, residual.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.mean_before, run.noisy[run.mask].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        found.mean_residual[1][run.mask], residual[:, shell == 1].sum(axis=1) / np.sqrt(8), atol=1e-4
    )
    assert np.isnan(found.mean_residual[1][~run.mask]).all()


def test_voxels_without_a_noise_level_are_left_out() -> None:
    run = make_run()
    run.sigma[4, 4, 4] = 0.0

    found = run_statistics(run.noisy, run.denoised, run.sigma, run.mask, run.gradients.shell)

    assert np.isfinite(found.residual_std).all()
    assert found.residual_std.max() < 1.3


def test_the_carpet_runs_from_feet_to_head() -> None:
    shape = (10, 10, 10)
    height = np.broadcast_to(np.arange(10.0), shape)
    noisy = np.stack([height, height], axis=-1)

    found = run_statistics(
        noisy, np.zeros_like(noisy), np.ones(shape), np.ones(shape, dtype=bool), np.zeros(2, dtype=int)
    )

    assert (np.diff(found.carpet[:, 0]) >= 0).all()
    assert found.carpet[0, 0] == 0
    assert found.carpet[-1, 0] == 9


def test_a_series_is_read_once_from_start_to_end() -> None:
    """A compressed file cannot be read backwards without starting over."""

    class Recorder:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape = array, array.shape
            self.read: list[int] = []

        def __getitem__(self, key: tuple) -> np.ndarray:
            self.read.append(key[-1])
            return self.array[key]

    run = make_run()
    series = Recorder(run.noisy)
    run_statistics(series, run.denoised, run.sigma, run.mask, run.gradients.shell, [0, 1])

    assert series.read == list(range(10))


def test_the_volume_shown_is_an_ordinary_one() -> None:
    spread = np.array([1.0, 1.0, 0.9, 5.0, 0.95, np.nan])
    shell = np.array([0, 0, 1, 1, 1, 1])

    assert representative_volumes(spread, shell)[1] == 4


def test_many_shells_are_thinned_out_to_first_last_and_some_between() -> None:
    assert shells_to_show([0, 1, 2]) == [0, 1, 2]
    chosen = shells_to_show(list(range(40)))
    assert len(chosen) == 5
    assert chosen[0] == 0
    assert chosen[-1] == 39


def test_training_chart_shows_the_held_out_loss_and_the_level_of_noise() -> None:
    history = [
        {"step": 0, "heldout_loss": 2.0, "training_loss": float("nan"), "learning_rate": 0.0},
        {"step": 50, "heldout_loss": 1.2, "training_loss": 1.5, "learning_rate": 1e-3},
        {"step": 100, "heldout_loss": float("nan"), "training_loss": 1.4, "learning_rate": 1e-3},
    ]

    figure = charts.training_chart(history)

    level, curve = drawn(figure.axes[0])
    assert level[:, 1].tolist() == [1, 1]
    assert curve.tolist() == [[0, 2.0], [50, 1.2]]
    assert drawn(figure.axes[1])[0].tolist() == [[50, 1.5], [100, 1.4]]


def test_no_training_is_said_in_words() -> None:
    figure = charts.training_chart([])

    assert "No training" in figure.texts[0].get_text()


def test_carpet_and_distribution_mark_what_noise_alone_would_give() -> None:
    run = make_run()
    statistics = run_statistics(run.noisy, run.denoised, run.sigma, run.mask, run.gradients.shell)

    spread = charts.carpet_chart(statistics, run.gradients).axes[0]
    linear = charts.distribution_chart(statistics, run.gradients).axes[0]

    b0, weighted, level = drawn(spread)
    np.testing.assert_allclose(np.concatenate([b0, weighted])[:, 1], statistics.residual_std)
    assert set(level[:, 1]) == {1}
    _, histogram, gaussian = drawn(linear)
    assert statistics.residual_counts.sum() == 10 * run.mask.sum()
    assert np.trapezoid(gaussian[:, 1], gaussian[:, 0]) == pytest.approx(1, abs=1e-3)
    assert np.abs(histogram[:, 1] - gaussian[:, 1]).max() < 0.08


def test_shells_have_colours_that_stay_apart_for_the_colour_blind() -> None:
    found = np.array([colors.to_rgb(colour) for colour in charts.shell_colours([0, 700, 1000, 2000])])
    # Brightness alone tells the weighted shells apart.
    brightness = found[1:] @ [0.2126, 0.7152, 0.0722]

    assert (np.diff(brightness) > 0.1).all()


def test_a_run_gives_files_with_ids_of_their_own_and_nothing_from_outside(tmp_path: Path) -> None:
    run = make_run()
    maps = tensor_maps(0.5, (1, 0, 0), run.mask)
    files = make_run_figures(
        run.noisy, run.denoised, run.sigma, run.mask, run.gradients, LAS,
        history=[{"step": 1, "heldout_loss": 1.0, "training_loss": 1.0, "learning_rate": 0.1}],
        tensors_before=maps, tensors_after=maps, uncertainty_xyz=run.sigma, out_dir=tmp_path / "new", prefix="sub-01",
    )  # fmt: skip

    assert {"gradients", "flickerB0", "flickerB1000", "residualB1000", "meanresidualB1000", "noisemap", "uncertainty",
            "colourfa", "md", "signal", "carpet", "distribution", "training", "dwicarpet", "neighbours", "brainmask",
            "background", "shellmeanB1000", "shellstdB1000"} <= set(files)  # fmt: skip
    ids: list[str] = []
    for name, path in files.items():
        assert path == tmp_path / "new" / f"sub-01_desc-{name}_dwi.svg"
        text = path.read_text()
        root = ElementTree.fromstring(text)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        if name in ("gradients", "signal", "carpet", "distribution", "training"):
            assert "currentColor" in text, "a chart takes the colour of the page's text"
        assert svg.INK not in text
        targets = re.findall(r'(?:href|src)="(?!data:|#)([^"]*)"|url\((?!#)([^)]*)\)', text)
        assert targets == []
        ids += re.findall(r'\bid="([^"]*)"', text)
        for reference in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text):
            assert "".join(reference) in ids
    assert len(ids) == len(set(ids))


def test_a_series_that_falls_below_zero_outside_the_brain_is_drawn(tmp_path: Path) -> None:
    run = make_run()
    noisy = np.where(run.mask[..., None], run.noisy, -1.0).astype(np.float32)
    files = make_run_figures(
        noisy,
        run.denoised,
        run.sigma,
        run.mask,
        run.gradients,
        LAS,
        history=[],
        out_dir=tmp_path,
        prefix="sub-01",
    )
    assert files["background"].stat().st_size > 1000


def test_the_same_data_give_the_same_files(tmp_path: Path) -> None:
    run = make_run()
    texts = []
    for attempt in ("one", "two"):
        files = make_run_figures(
            run.noisy,
            run.denoised,
            run.sigma,
            run.mask,
            run.gradients,
            LAS,
            out_dir=tmp_path / attempt,
            prefix="s",
        )
        texts.append({name: path.read_text() for name, path in files.items()})

    assert texts[0] == texts[1]


def test_labels_are_escaped() -> None:
    figure = charts.training_chart([])

    root = ElementTree.fromstring(svg.to_svg(figure, "x", 'a "b" <c> & d'))

    assert root.get("aria-label") == 'a "b" <c> & d'


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = make_run()

    with pytest.raises(InputOutputError, match="file"):
        make_run_figures(
            run.noisy,
            run.denoised,
            run.sigma,
            run.mask,
            run.gradients,
            LAS,
            out_dir=tmp_path / "file",
            prefix="sub-01",
        )


def test_mean_and_spread_of_a_shell_are_those_of_its_volumes() -> None:
    run = make_run()
    found = run_statistics(run.noisy, run.denoised, run.sigma, run.mask, run.gradients.shell, [1])
    for when, series in enumerate((run.noisy, run.denoised)):
        volumes = np.asarray(series)[..., run.gradients.shell == 1].astype(np.float64)
        np.testing.assert_allclose(found.shell_mean[1][when], volumes.mean(axis=3), rtol=1e-4)
        np.testing.assert_allclose(
            found.shell_std[1][when], volumes.std(axis=3, ddof=1), rtol=1e-3, atol=1e-3
        )


def test_a_bad_volume_is_marked_in_the_carpet_and_falls_out_of_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    bvecs = rng.standard_normal((24, 3))
    gradients = Gradients.from_arrays([0] * 4 + [1000] * 20, bvecs / np.linalg.norm(bvecs, axis=1)[:, None])
    anatomy = rng.uniform(50, 150, (10, 10, 8, 1)).astype(np.float32)
    noisy = anatomy + rng.normal(0, 10, (10, 10, 8, 24)).astype(np.float32)
    noisy[..., 9] = noisy[::-1, ..., 9]
    ones = np.ones(noisy.shape[:3])
    statistics = run_statistics(
        noisy, np.broadcast_to(anatomy, noisy.shape), 10 * ones, ones > 0, gradients.shell
    )

    assert np.flatnonzero(volume_charts.outliers_of(statistics, gradients)).tolist() == [9]
    strip = volume_charts.signal_carpet_chart(statistics, gradients).axes[0]
    assert [text.get_text() for text in strip.texts] == ["9"]
    moved = np.full(gradients.n_volumes, 0.1)
    moved[[0, 9]] = np.nan, 2.0
    trace = volume_charts.signal_carpet_chart(statistics, gradients, moved).axes[1]
    heights = [bar.get_height() for bar in trace.patches if isinstance(bar, patches.Rectangle)]
    place = int(np.flatnonzero(np.argsort(gradients.shell, kind="stable") == 9)[0])
    assert heights[place] == 2.0
    assert trace.patches[place].get_facecolor() != trace.patches[place - 1].get_facecolor()
    assert trace.get_ylim()[1] > 2.0
    before = drawn(volume_charts.neighbours_chart(statistics, gradients).axes[0])[0][:, 1]
    assert before[9] < 0.5 < np.median(before)
