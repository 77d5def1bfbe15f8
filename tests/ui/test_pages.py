"""The pages that people look at really show the run, its curves and its distributions, in each backend that has any.

Every run holds what breaks pages: NaN and infinite values, a population of one value, one with NaN in it.
"""

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from pydantic import TypeAdapter

from d9d_tracker import AccumulatorConfig, AnyTrackerConfig, RunConfig, TrackerConfig, tracker_from_config
from d9d_tracker.provider.aim import AimConfig
from d9d_tracker.provider.mlflow import MLflowConfig
from d9d_tracker.provider.tensorboard import TensorBoardConfig

Serve = Callable[..., str]
Shoot = Callable[[str], None]
ROOT = Path(__file__).parents[2]
STEPS = 100
TENSORBOARD_BLUE = (66, 80, 102)
MLFLOW_BLUE = (34, 114, 180)


def write(config: TrackerConfig, folder: Path) -> str:
    """Write the run that is looked at; return its id."""
    accumulator = AccumulatorConfig(device="cpu", sync_every=10, backlog_dir=folder / "backlog")
    tracker = tracker_from_config(config.model_copy(update={"accumulator": accumulator}))
    properties = RunConfig(name="looked at", description="a run with odd values", hparams={"net": {"layers": [1, 2]}})
    generator = torch.Generator().manual_seed(0)
    with tracker.open(properties) as run:
        run.set_context({"stage": "train"})
        for step in range(STEPS):
            run.set_step(step)
            run.scalar("loss", 1 / (step + 1))
            run.scalar("odd", math.nan if step % 3 == 0 else math.inf if step == 50 else step)
            run.bins("grad", torch.randn(1000, generator=generator) * (step + 1))
            run.bins("same", torch.zeros(5))
            run.bins("bad", torch.tensor([1.0, math.nan, math.inf]))
    assert tracker.run_id is not None
    return tracker.run_id


def write_as(config: str, folder: str) -> None:
    """Write it, in a process of its own, to the backend of a configuration that is JSON."""
    write(TypeAdapter[Any](AnyTrackerConfig).validate_json(config), Path(folder))


def longest(paths: Locator) -> int:
    """Return how many corners the longest of some SVG paths has."""
    return max((sum(map((path or "").count, "LCl")) for path in paths.evaluate_all(ATTRIBUTE)), default=0)


ATTRIBUTE = "paths => paths.map(path => path.getAttribute('d'))"


def columns_of(colour: tuple[int, int, int], drawing: Locator, top: int = 0) -> int:
    """Return in how many columns of its picture, from ``top`` downwards, something of a colour is drawn."""
    pixels = np.asarray(Image.open(io.BytesIO(drawing.screenshot())).convert("RGB")).astype(int)[top:]
    return int((np.abs(pixels - colour).sum(axis=2) < 30).any(axis=0).sum())


def test_aim(page: Page, serve: Serve, screenshot: Shoot, tmp_path: Path) -> None:
    config = AimConfig(repo=str(tmp_path), log_system_params=False, capture_terminal_logs=False)
    run_id = write(config.model_copy(update={"system_tracking_interval": None}), tmp_path)
    address = serve("aim", "up", "--repo", str(tmp_path), "--host", "127.0.0.1", "--port", "PORT")

    page.add_locator_handler(page.get_by_text("Skip", exact=True), lambda: page.get_by_text("Skip", exact=True).click())
    page.goto(f"{address}/runs/{run_id}/metrics")
    expect(page.get_by_text("/ looked at").filter(visible=True).first).to_be_visible()
    for name in ("loss", "odd"):
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_attached()
    expect(page.get_by_text('stage="train"').first).to_be_visible()
    expect(page.locator("path.Line").first).to_be_attached()
    page.wait_for_timeout(1000)
    assert longest(page.locator("path.Line")) > STEPS / 2
    screenshot("aim-metrics")

    page.goto(f"{address}/runs/{run_id}/distributions")
    expect(page.get_by_text("grad", exact=True).first).to_be_visible()
    page.get_by_text("grad", exact=True).first.click()
    expect(page.locator(".highcharts-series-group .highcharts-point").nth(30)).to_be_attached()
    screenshot("aim-distributions")


def test_tensorboard(page: Page, serve: Serve, screenshot: Shoot, tmp_path: Path) -> None:
    run_id = write(TensorBoardConfig(log_dir=tmp_path / "runs"), tmp_path)
    address = serve("tensorboard", "--logdir", str(tmp_path / "runs"), "--host", "127.0.0.1", "--port", "PORT")

    page.goto(f"{address}/?tagFilter=loss#timeseries")
    expect(page.get_by_text(run_id).first).to_be_visible()
    expect(page.get_by_text("loss/stage=train").first).to_be_visible()
    page.wait_for_timeout(2000)
    curve = page.locator("scalar-card line-chart").first
    assert columns_of(TENSORBOARD_BLUE, curve) > 100
    screenshot("tensorboard-scalars")

    page.goto(f"{address}/?tagFilter=odd#timeseries")
    expect(page.get_by_text("odd/stage=train").first).to_be_visible()

    page.goto(f"{address}/#histograms")
    histograms = page.locator("vz-histogram-timeseries g.histogram path.outline")
    expect(histograms.nth(9)).to_be_attached()
    page.wait_for_timeout(1000)
    assert longest(histograms) >= 25
    screenshot("tensorboard-histograms")

    page.goto(f"{address}/#hparams")
    expect(page.get_by_text("net.layers").first).to_be_visible()
    expect(page.get_by_text("[1, 2]").first).to_be_visible()

    page.goto(f"{address}/#text")
    expect(page.get_by_text("a run with odd values").first).to_be_visible()
    screenshot("tensorboard-text")


def test_mlflow(page: Page, serve: Serve, screenshot: Shoot, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = write(MLflowConfig(experiment="looks", tracking_uri=store), tmp_path)
    address = serve(
        "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", "PORT", "--workers", "1"
    )

    page.goto(f"{address}/#/experiments/1/runs/{run_id}")
    expect(page.get_by_text("looked at").first).to_be_visible()
    expect(page.get_by_text("a run with odd values").first).to_be_visible()
    for name in ("loss/stage:train", "odd/stage:train", "grad/stage:train/p50"):
        expect(page.get_by_text(name, exact=True).first).to_be_attached()

    page.goto(f"{address}/#/experiments/1/runs/{run_id}/model-metrics")
    search, charts = page.get_by_placeholder("Search metric charts"), page.locator("main")
    search.fill("no such metric")
    expect(page.get_by_text("No metric charts")).to_be_visible()
    assert columns_of(MLFLOW_BLUE, charts, top=200) < 20
    search.fill("^(loss|odd)/stage:train$")
    expect(page.get_by_text("(loss/stage:train)").first).to_be_visible()
    page.wait_for_timeout(2000)
    assert columns_of(MLFLOW_BLUE, charts, top=200) > 150
    screenshot("mlflow-metrics")

    search.fill("^grad/")
    expect(page.get_by_text("(grad/stage:train/count)").first).to_be_attached()
    screenshot("mlflow-quantiles")


def test_trackio(page: Page, serve: Serve, screenshot: Shoot, tmp_path: Path) -> None:
    config = {"provider": "trackio", "project": "looks", "dir": str(tmp_path / "trackio")}
    # Trackio writes to one folder a process.
    program = "import sys; from tests.ui.test_pages import write_as; write_as(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", program, json.dumps(config), str(tmp_path)], check=True, cwd=ROOT)
    show = "import trackio; trackio.show('looks', server_port=PORT, open_browser=False, block_thread=True)"
    address = serve("env", f"TRACKIO_DIR={tmp_path / 'trackio'}", sys.executable, "-c", show)

    page.goto(f"{address}/?project=looks")
    expect(page.get_by_text("looked at").first).to_be_visible()
    metrics = page.get_by_placeholder("e.g., loss|ndcg@10|gpu")
    for name in ("loss", "odd"):
        metrics.fill(f"^{name}")
        expect(page.get_by_text(f"{name} (1)")).to_be_visible()
        expect(page.get_by_text("bad (2)")).not_to_be_visible()
        page.wait_for_timeout(1000)
        screenshot(f"trackio-{name}")
    metrics.fill("^grad")
    expect(page.get_by_text("grad/stage=train").first).to_be_visible()
    screenshot("trackio-histograms")
