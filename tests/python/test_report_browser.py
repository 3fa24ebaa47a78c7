"""The page in headless Chromium: it loads quickly and without errors, and answers mouse and keyboard."""

import json
import shutil
import time

import pytest
import report_programs as programs
from farrier._src import remarks, report

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1600",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


def load(browser, path):
    """Opens a page and waits for its script; returns its own count of milliseconds until it was ready."""
    browser.get(path.as_uri())
    for _ in range(600):
        ready = browser.execute_script("return document.documentElement.dataset.ready")
        if ready:
            return int(ready)
        time.sleep(0.05)
    raise AssertionError(f"never ready: {browser.get_log('browser')}")


def errors(browser):
    return [x for x in browser.get_log("browser") if x["level"] in ("SEVERE", "WARNING")]


def range_of(browser, name="memory"):
    return browser.execute_script(f"const r = farrier.charts.{name}.chart.x_range; return [r.start, r.end]")


def click(browser, element):
    """Clicks what may lie under the bar of sections."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def settle():
    time.sleep(0.3)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    made = programs.scanned()[1].compare(programs.made())
    said = [
        {"pass": "remat", "kind": "missed", "message": "kept", "args": {"Bytes": 4096, "Seconds": 2.5e-6}},
        {"pass": "remat", "kind": "applied", "message": "recomputed"},
        {"pass": "fusion", "kind": "missed", "message": "no cuDNN"},
    ]
    said = [remarks.to_json({"location": "model.py:3", **r}) for r in said]
    data = {**made.data, "memory": {**made.data["memory"], "budget": 40 * 2**20}, "remarks": said}
    made = report.Report(data, before=made.before)
    load(browser, made.save(tmp_path_factory.mktemp("page") / "r.html"))
    return made


def test_figures_in_the_page_are_the_reports(browser, page):
    assert errors(browser) == []
    peak = page.data["memory"]["peak"]
    shown = browser.execute_script("const m = farrier.charts.memory; return [Math.max(...m.total), m.at]")
    assert shown == [peak["bytes"], peak["position"]]
    assert f"{peak['bytes']:,} bytes" in browser.find_element("id", "memory-readout").text
    # What is drawn at the peak reaches it: thinning loses no peak.
    top = browser.execute_script(
        "const d = farrier.charts.memory.chart.renderers[0].data_source.data;"
        "return Math.max(...d['y' + farrier.data.origins.length])"
    )
    assert round(top * browser.execute_script("return farrier.data.memory.unit[1]")) == peak["bytes"]


def test_hover_reads_the_position_under_the_mouse(browser, page):
    from selenium.webdriver import ActionChains

    chart = browser.find_element("id", "memory-chart")
    before = browser.find_element("id", "memory-readout").text
    ActionChains(browser).move_to_element_with_offset(chart, 150, 0).perform()
    settle()
    after = browser.find_element("id", "memory-readout").text
    assert after != before and "live (" in after


def test_keyboard_moves_and_zooms(browser, page):
    from selenium.webdriver.common.keys import Keys

    chart = browser.find_element("id", "memory-chart")
    browser.execute_script("arguments[0].focus()", chart)
    full = range_of(browser)
    chart.send_keys("p")
    chart.send_keys("+")
    settle()
    zoomed = range_of(browser)
    assert zoomed[1] - zoomed[0] < full[1] - full[0]
    at = browser.execute_script("return farrier.charts.memory.at")
    chart.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script("return farrier.charts.memory.at") > at
    assert "Live at instruction" in browser.find_element("id", "live-title").text
    chart.send_keys("0")
    chart.send_keys("p")
    settle()
    assert range_of(browser) == full
    assert "Live at the peak" in browser.find_element("id", "live-title").text


def test_groups_filters_and_origins(browser, page):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", "live-group")).select_by_value("origin")
    groups = browser.execute_script("return farrier.charts.memory.groups.rows.map((r) => [r[2], r[0][0]])")
    assert dict(groups) == page.peak_by("origin")
    Select(browser.find_element("id", "live-group")).select_by_value("")
    box = browser.find_element("id", "live-filter")
    box.send_keys("residuals")
    settle()
    body = browser.find_elements("css selector", "#live-table tbody tr")
    assert 0 < len([r for r in body if r.is_displayed()]) < len(page.at_peak())
    box.clear()
    browser.execute_script("document.getElementById('live-filter').dispatchEvent(new Event('input'))")
    toggle = browser.find_element("id", "origin-residuals")
    click(browser, toggle)
    settle()
    hidden = browser.execute_script(
        "const d = farrier.charts.memory.chart.renderers[0].data_source.data;"
        "return Math.max(...d['y' + farrier.data.origins.length])"
    )
    assert hidden * browser.execute_script("return farrier.data.memory.unit[1]") < page.peak_bytes
    click(browser, toggle)


def test_before_is_laid_over(browser, page):
    drawn = browser.execute_script(
        "return farrier.charts.memory.chart.renderers.map((r) => r.data_source)"
        ".map((s) => [s.name, s.data.y?.length ?? 0])"
    )
    assert dict(drawn)["before"] > 10
    assert "memory" in browser.find_element("id", "answer").text
    assert browser.find_elements("id", "changes-section")


def test_estimates_are_laid_over_and_switched_off(browser, page):
    planned = page.data["memory"]["estimate"]
    top = browser.execute_script(
        "const source = farrier.charts.memory.chart.renderers.map((r) => r.data_source)"
        ".find((s) => s.name === 'estimate'); return Math.max(...source.data.y) * farrier.data.memory.unit[1]"
    )
    assert round(top) == planned["peak"]
    visible = "return farrier.charts.memory.chart.renderers.find((r) => r.data_source.name === arguments[0]).visible"
    assert browser.execute_script(visible, "estimate") is True
    assert browser.execute_script(visible, "estimate before") is False
    for name in ("line-estimate", "line-estimate-before", "line-before"):
        click(browser, browser.find_element("id", name))
    assert browser.execute_script(visible, "estimate") is False
    assert browser.execute_script(visible, "estimate before") is True
    assert browser.execute_script(visible, "before") is False
    for name in ("line-estimate", "line-estimate-before", "line-before"):
        click(browser, browser.find_element("id", name))
    assert "estimated" in browser.find_element("id", "memory-readout").text
    assert (
        "above XLA's peak" in (cards := browser.find_element("class name", "cards").text) or "below" in cards
    )


def test_remarks_filter_by_several_words(browser, page):
    rows = "#remarks-section tbody tr"
    assert len(browser.find_elements("css selector", rows)) == len(page.remarks)
    box = browser.find_element("id", "remarks-filter")
    box.send_keys("remat missed")
    settle()
    (shown,) = browser.find_elements("css selector", rows)
    # Figures that name bytes and seconds stand in columns of their own, readable.
    assert "4 KiB" in shown.text and "2.5 us" in shown.text and "model.py:3" in shown.text
    box.clear()


def test_memory_axis_takes_the_unit_of_what_it_shows(browser, page):
    label = browser.execute_script(
        "return farrier.charts.memory.chart.left.find((a) => a.axis_label).axis_label"
    )
    assert label == "live device memory (MiB)"


def test_schedule_zooms_into_a_loop_and_folds_it(browser, page):
    settle()
    count = "return farrier.charts.schedule.hits.length"
    expanded = browser.execute_script(count)
    click(browser, browser.find_element("id", "expand"))
    settle()
    assert browser.execute_script(count) < expanded
    click(browser, browser.find_element("id", "expand"))
    chart = browser.find_element("id", "schedule-chart")
    full = range_of(browser, "schedule")
    browser.execute_script("arguments[0].focus()", chart)
    chart.send_keys("+")
    settle()
    zoomed = range_of(browser, "schedule")
    assert zoomed[1] - zoomed[0] < full[1] - full[0]
    chart.send_keys("0")


def test_tables_sort(browser, page):
    head = browser.find_element("css selector", "#kernels-section th:nth-child(2) button")
    click(browser, head)
    column = browser.execute_script(
        "return [...document.querySelectorAll('#kernels-section tbody tr')]"
        ".map((r) => +r.children[1].textContent)"
    )
    assert column == sorted(column, reverse=True)
    assert errors(browser) == []


def test_100k_instructions_load_in_three_seconds(browser, tmp_path):
    """A report as long as an unrolled 100-layer step's, made by repeating a real one."""
    base = programs.made().to_json()
    n = len(base["program"]["names"])
    times = -(-100_000 // n)
    step = base["schedule"]["step_ns"]
    data = json.loads(json.dumps(base))
    for k in range(1, times):
        for key in ("names", "sources", "shapes", "runs"):
            data["program"][key] += base["program"][key]
        for b in base["memory"]["buffers"]:
            if b["opcode"] != "parameter":
                data["memory"]["buffers"].append(
                    {**b, "name": f"{b['name']}.{k}", "start": b["start"] + k * n, "end": b["end"] + k * n}
                )
        for s in base["schedule"]["slices"]:
            data["schedule"]["slices"].append(
                {**s, "start_ns": s["start_ns"] + k * step, "position": s["position"] + k * n}
            )
    for b in data["memory"]["buffers"]:
        if b["opcode"] == "parameter":
            b["end"] = times * n - 1
    data["schedule"]["step_ns"] = times * step
    path = report.Report(data).save(tmp_path / "large.html")
    assert path.stat().st_size < 10e6
    # The page's own work, in processor time: other programs on the machine do not count.
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    ready = load(browser, path)
    metrics = {
        m["name"]: m["value"] for m in browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    }
    assert len(data["program"]["names"]) >= 100_000
    marks = browser.execute_script(
        "return performance.getEntriesByType('mark').map((m) => `${m.name} ${Math.round(m.startTime)} ms`)"
    )
    print(
        f"\n{path.stat().st_size / 1e6:.1f} MB, ready in {ready} ms; {', '.join(marks)}; "
        f"{metrics['TaskDuration']:.2f} s of processor time"
    )
    assert errors(browser) == []
    assert metrics["TaskDuration"] < 3
