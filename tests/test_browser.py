"""Both pages in a real browser, from ``file://``: nothing is requested, no script fails, everything answers.

Screenshots are left in ``build/screenshots``, to be looked at.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest
from report_helpers import METRICS, PREPARATION, make_arrays, write_run

from dwmri_bidsapp.reports import write_group_report, write_subject_report

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
SCREENSHOTS = Path(__file__).resolve().parent.parent / "build" / "screenshots"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        # Software rendering: a machine without a GPU must draw the sphere too.
        options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that notes what is requested and what goes wrong; both must stay empty."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    page.requested, page.wrong = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    yield page
    assert page.wrong == []
    assert [url for url in page.requested if not url.startswith(("file:", "blob:", "data:"))] == []
    assert [url for url in page.requested if url.startswith("file:") and not url.endswith(".html")] == []
    page.close()


def picture(tab: Any, name: str) -> None:
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def subject_page(out_dir: Path) -> Path:
    """A page with figures, and with an image whose directions fill the sphere."""
    run = make_arrays()
    stem = out_dir / "sub-01/dwi/sub-01_run-1_desc-denoised_dwi"
    nb.save(nb.Nifti1Image(run.denoised, np.diag([-2.0, 2, 2, 1])), f"{stem}.nii.gz")
    np.savetxt(f"{stem}.bval", run.gradients.bvals[None])
    np.savetxt(f"{stem}.bvec", run.gradients.bvecs.T)
    return write_subject_report(out_dir, "01")


def test_before_and_after_flicker_by_button_click_and_key(tab: Any, subject_page: Path) -> None:
    tab.goto(subject_page.as_uri())
    figure = tab.locator("figure.flicker").first
    above = figure.locator(".foreground-svg")

    def shown() -> tuple[str | None, bool]:
        return figure.get_attribute("data-shown"), above.is_visible()

    assert shown() == ("after", True)
    figure.get_by_role("button", name="Before").click()
    assert shown() == ("before", False)
    assert figure.get_by_role("button", name="Before").get_attribute("aria-pressed") == "true"
    figure.locator("svg").first.click()
    assert shown() == ("after", True)
    figure.get_by_role("button", name="Before").focus()
    tab.keyboard.press("b")
    assert shown() == ("before", False)
    tab.keyboard.press("f")
    tab.wait_for_function(
        "figure => figure.dataset.shown === 'after'", arg=figure.element_handle(), timeout=3000
    )
    tab.wait_for_function(
        "figure => figure.dataset.shown === 'before'", arg=figure.element_handle(), timeout=3000
    )
    tab.keyboard.press("a")
    assert shown() == ("after", True)


def test_the_sphere_is_drawn_when_the_reader_comes_near_and_can_be_turned(
    tab: Any, subject_page: Path
) -> None:
    tab.goto(subject_page.as_uri())
    sphere = tab.locator(".sphere").first
    sphere.scroll_into_view_if_needed()
    tab.wait_for_selector(".sphere[data-drawn]", timeout=20_000)
    if sphere.locator(".no-webgl").count():
        pytest.skip("this browser has no WebGL")
    eye = "sphere => sphere.layout.scene.camera.eye.x"
    before = sphere.evaluate(eye)
    box = sphere.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2 + 80, box["y"] + box["height"] / 2, steps=5)
    tab.mouse.up()
    tab.wait_for_function(
        f"([sphere, before]) => ({eye})(sphere) !== before", arg=[sphere.element_handle(), before]
    )


def test_a_rating_is_saved_by_the_browser(tab: Any, subject_page: Path) -> None:
    tab.goto(subject_page.as_uri())
    box = tab.locator("details.rating").first
    box.locator("summary").click()
    box.get_by_label("doubtful").check()
    box.get_by_label("blur").check()
    box.get_by_label("Rater").fill("A. Reader")
    with tab.expect_download() as download:
        box.get_by_role("button", name="Save as JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "sub-01_run-1_rating.json"
    assert (saved["run"], saved["rating"], saved["seen"], saved["rater"]) == (
        "sub-01_run-1", "doubtful", ["blur"], "A. Reader"
    )  # fmt: skip


@pytest.mark.parametrize("look", ["light", "dark", "print", "print-dark", "narrow"])
def test_pages_fit_every_look(tab: Any, subject_page: Path, look: str) -> None:
    if look == "narrow":
        tab.set_viewport_size({"width": 480, "height": 900})
    scheme, media = "dark" if "dark" in look else "light", "print" if "print" in look else "screen"
    tab.emulate_media(color_scheme=scheme, media=media)
    for page in (subject_page, write_group_report(subject_page.parent)):
        tab.goto(page.as_uri())
        if page.name == "group.html":
            tab.wait_for_selector("#chart-overview, #chart-values .main-svg", state="attached")
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "it scrolls sideways"
        )
        picture(tab, f"{page.stem}-{look}")
        buttons = tab.locator(".controls, .tools").first
        assert buttons.is_visible() == ("print" not in look)
        ink, paper = (
            tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
        )
        assert (brightness(ink) > brightness(paper)) == (look == "dark"), "paper is white for every reader"
        notice = tab.locator(".notice").first.evaluate("notice => getComputedStyle(notice).backgroundColor")
        assert (brightness(notice) < 300) == (look == "dark")


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])


@pytest.fixture
def group_page(tmp_path: Path) -> Path:
    """Twelve participants, two methods, two sessions of some, one shell more in the last."""
    rng = np.random.default_rng(0)
    shells = [*PREPARATION["shells"], {"b_value": 2000.0, "n_volumes": 8}]
    for i in range(1, 13):
        for session in ["a", "b"] if i > 10 else ["a"]:
            for method in ("denoised", "mppca"):
                metrics = {name: value * rng.normal(1, 0.03) for name, value in METRICS.items()}
                metrics["b0_snr"] = {1: -2.0, 2: -5.0}.get(i, 10.0 + i)
                if method == "mppca":
                    metrics.pop("residual_std")
                write_run(tmp_path, f"sub-{i:02d}_ses-{session}", metrics, method=method,
                          preparation=PREPARATION | ({"shells": shells} if i == 12 else {}))  # fmt: skip
        write_subject_report(tmp_path, f"{i:02d}")
    return write_group_report(tmp_path)


def open_group(tab: Any, page: Path) -> None:
    tab.goto(page.as_uri())
    tab.wait_for_selector("#chart-values .main-svg")
    tab.wait_for_selector("#chart-overview .main-svg")


def first_cells(tab: Any, n: int = 3) -> list[str]:
    return [tab.locator("#table-runs tbody tr").nth(i).locator("td").first.inner_text() for i in range(n)]


def test_the_table_sorts_searches_and_is_downloaded(tab: Any, group_page: Path) -> None:
    open_group(tab, group_page)
    assert tab.locator("#count-runs").inner_text() == "28 of 28 rows"
    heading = tab.locator("#table-runs th", has_text="b=0 signal")
    heading.get_by_role("button").press("Enter")
    # Negative numbers: as text they would be sorted the other way round.
    assert first_cells(tab, 4) == ["sub-02_ses-a", "sub-02_ses-a", "sub-01_ses-a", "sub-01_ses-a"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").click()
    assert first_cells(tab, 1)[0].startswith("sub-12")
    tab.locator("#table-runs th", has_text="Spread of the residual").get_by_role("button").click()
    last = tab.locator("#table-runs tbody tr").last.locator("td").nth(1).inner_text()
    assert last == "mppca", "what is missing stays last"
    tab.locator("#search").fill("MPPCA sub-11")
    assert tab.locator("#count-runs").inner_text() == "2 of 28 rows"
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Run,Method,Session")
    assert {line.split(",")[0] for line in lines[1:]} == {"sub-11_ses-a", "sub-11_ses-b"}
    assert download.value.suggested_filename == "group_selection.csv"


def test_rows_of_other_methods_carry_no_marks_of_the_own_one(tab: Any, group_page: Path) -> None:
    text = group_page.read_text().replace('"outlier":false', '"outlier":true', 1)  # of the first run
    group_page.write_text(text)
    open_group(tab, group_page)
    heads = tab.locator("#table-runs th").all_inner_texts()
    places = [
        next(i for i, head in enumerate(heads) if head.startswith(name)) for name in ("Warnings", "Robust")
    ]
    tab.locator("#search").fill("sub-01")
    own, other = tab.locator("#table-runs tbody tr").all()
    assert [own.locator("td").nth(i).inner_text() == "" for i in places] == [False, False]
    assert [other.locator("td").nth(i).inner_text() for i in places] == ["", ""]
    assert [row.get_attribute("class") or "" for row in (own, other)] == ["outlier", ""]
    tab.locator("#search").fill("outlier")
    assert tab.locator("#count-runs").inner_text() == "1 of 28 rows"


def test_filters_hold_in_charts_statistics_and_table(tab: Any, group_page: Path) -> None:
    open_group(tab, group_page)
    points = "document.querySelectorAll('#chart-differences .points path.point').length"
    assert tab.evaluate(points) == 2 * 12 + 2, "a point for each participant and method, and the two means"
    tab.select_option("#session", "ses-b")
    assert tab.locator("#selected").inner_text() == "2 of 14 runs"
    assert tab.locator("#count-runs").inner_text() == "4 of 28 rows"
    assert tab.evaluate(points) == 2 * 2 + 2
    assert tab.locator("#table-statistics tbody tr td.number").first.inner_text() == "2"
    tab.select_option("#shell", "2000")
    assert tab.locator("#selected").inner_text() == "1 of 14 runs"
    tab.locator("#search").fill("mppca")
    tab.get_by_role("button", name="Show all").click()
    assert tab.locator("#selected").inner_text() == "14 of 14 runs"
    assert tab.locator("#count-runs").inner_text() == "28 of 28 rows"
    tab.select_option("#measure", "fa_mean")
    assert "Mean fractional anisotropy" in tab.locator("#measure-words").inner_text()
    tab.select_option("#reference", "denoised")
    assert "Difference to denoised" in tab.locator("#chart-differences").inner_text()
    assert "mppca minus denoised" in tab.locator("#chart-differences").get_attribute("aria-label")
    tab.select_option("#measure", "b0_snr")  # −5, −2, 13, 14 … 22 and two sessions of the last two
    assert "denoised, 14 runs, median 17.5" in tab.locator("#chart-values").get_attribute("aria-label")
    picture(tab, "group-methods")


def test_tables_stand_without_the_chart_library(tab: Any, group_page: Path) -> None:
    tab.add_init_script("delete window.DecompressionStream")  # as in browsers of before 2023
    tab.goto(group_page.as_uri())
    tab.wait_for_selector("#charts-missing", state="visible", timeout=10_000)
    rows = tab.locator("#table-statistics tbody tr")
    everything = rows.count()
    assert everything > 0
    tab.select_option("#reference", "denoised")
    assert 0 < rows.count() < everything


def test_points_and_rows_lead_to_the_run(tab: Any, group_page: Path) -> None:
    open_group(tab, group_page)
    point = tab.locator("#chart-differences .points path.point").nth(4)
    point.click(force=True)
    tab.wait_for_url("**/sub-*.html*")
    tab.go_back()
    tab.wait_for_selector("#chart-values .main-svg")
    tab.locator("#search").fill("sub-11_ses-b")
    tab.locator("#table-runs tbody a").first.click()
    tab.wait_for_url("**/sub-11.html#sub-11_ses-b")
    assert tab.locator("h2#sub-11_ses-b").is_visible()


def test_a_thousand_participants_open_at_once(tab: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(1000):
        write_run(
            tmp_path, f"sub-{i:04d}", {name: value * rng.normal(1, 0.03) for name, value in METRICS.items()}
        )
    page = write_group_report(tmp_path)
    session = tab.context.new_cdp_session(tab)
    # The page's own CPU time: what else runs on the machine must not count.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    open_group(tab, page)
    measured = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < measured["TaskDuration"] < 6, "this machine's speed drifts two- to threefold; 2 s are usual"
    assert tab.locator("#count-runs").inner_text() == "1000 of 1000 rows"
    assert tab.locator("#table-runs tbody tr").count() == 50
    tab.get_by_role("button", name="Next page").click()
    assert tab.locator("#page").inner_text() == "page 2 of 20"
