"""``run.backend`` reaches the object of each SDK, wherever the backend is: an image and a table."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d9d_tracker import AccumulatorConfig, RunConfig, tracker_from_config

from .conftest import AimStorage, MLflowStorage, Storage, TensorBoardStorage, TrackioStorage, WandbStorage

PIXELS = [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
GREY = [[round(255 * pixel) for pixel in row] for row in PIXELS]
COLUMNS, ROWS = ["question", "answer"], [["1 + 1", "2"], ["2 + 2", "4"]]
MARKDOWN = "| question | answer |\n| --- | --- |\n| 1 + 1 | 2 |\n| 2 + 2 | 4 |"


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import pictures

    return pictures


def test_an_image_and_a_table_are_stored(storage: Storage, pictures: Any, tmp_path: Path) -> None:
    name = str(getattr(storage.config, "provider", ""))
    accumulator = AccumulatorConfig(device="cpu", sync_every=2, backlog_dir=tmp_path / "backlog", flush_timeout=300)
    tracker = tracker_from_config(storage.config.model_copy(update={"accumulator": accumulator}))
    with tracker.open(RunConfig(name="pictures")) as run:
        for step in range(5):
            run.set_step(step)
            run.scalar("loss", float(step))
        if name == "jsonl":
            (refused,) = run.backend(lambda its: its.sdk).values()
            assert isinstance(refused.exception(60), AttributeError), "it has no SDK"
            return
        at = {} if name == "wandb" else {"step": 3}
        table_at = {} if name in ("wandb", "mlflow") else {"step": 3}
        futures = [
            *run.backend(getattr(pictures, f"{name}_image"), title="samples", pixels=PIXELS, **at).values(),
            *run.backend(
                getattr(pictures, f"{name}_table"), title="answers", columns=COLUMNS, rows=ROWS, **table_at
            ).values(),
        ]
        assert [future.result(300) for future in futures] == [None, None]
    image, table = READERS[name](storage, str(tracker.run_id))
    assert image == GREY
    assert table in (MARKDOWN, [dict(zip(COLUMNS, row, strict=True)) for row in ROWS])
    assert sorted(storage.times(str(tracker.run_id), "loss")) == list(range(5))


def pixels_of(image: Any) -> list[list[int]]:
    return np.asarray(image.convert("L")).tolist()


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def aim_pictures(storage: AimStorage, run_id: str) -> tuple[Any, Any]:
    from aim.storage.context import Context

    run, context = storage.run(run_id), Context({})
    (step,), (image,) = run.get_image_sequence("samples", context).values.sparse_list()
    _, (text,) = run.get_text_sequence("answers", context).values.sparse_list()
    assert step == 3
    return pixels_of(image.to_pil_image()), text.data


def wandb_pictures(storage: WandbStorage, run_id: str) -> tuple[Any, Any]:
    (media,) = storage.folder.glob(f"wandb/offline-run-*-{run_id}/files/media")
    (image,), (table,) = media.glob("images/samples_*.png"), media.glob("table/answers_*.table.json")
    return pixels_of(Image.open(image)), rows_of(json.loads(table.read_text()))


def mlflow_pictures(storage: MLflowStorage, run_id: str) -> tuple[Any, Any]:
    files = [file.path for file in storage.client.list_artifacts(run_id, "images")]
    (image,) = [path for path in files if path.endswith(".png") and "compressed" not in path]
    local, table = (storage.client.download_artifacts(run_id, path) for path in (image, "answers.json"))
    return pixels_of(Image.open(local)), rows_of(json.loads(Path(table).read_text()))


def trackio_pictures(storage: TrackioStorage, run_id: str) -> tuple[Any, Any]:
    from trackio.utils import MEDIA_DIR

    found = {key: (step, value) for _, step, _, row in storage.rows(run_id) for key, value in row.items()}
    (step, image), (_, table) = found["samples"], found["answers"]
    assert step == 3
    return pixels_of(Image.open(MEDIA_DIR / image["file_path"])), table["_value"]


def tensorboard_pictures(storage: TensorBoardStorage, run_id: str) -> tuple[Any, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(storage.folder / run_id), size_guidance={"images": 0, "tensors": 0}).Reload()
    (image,) = events.Images("samples")
    (text,) = events.Tensors("answers/text_summary")
    assert image.step == text.step == 3
    path = storage.folder / "image.png"
    path.write_bytes(image.encoded_image_string)
    return pixels_of(Image.open(path)), text.tensor_proto.string_val[0].decode()


READERS: dict[str, Any] = {
    "aim": aim_pictures,
    "wandb": wandb_pictures,
    "mlflow": mlflow_pictures,
    "trackio": trackio_pictures,
    "tensorboard": tensorboard_pictures,
}


def test_what_wandb_is_asked_for_globally_reaches_the_run(wandb_storage: WandbStorage, tmp_path: Path) -> None:
    import wandb

    accumulator = AccumulatorConfig(device="cpu", sync_every=2, backlog_dir=tmp_path / "backlog")
    trackers = [
        tracker_from_config(wandb_storage.config.model_copy(update={"accumulator": accumulator})) for _ in range(2)
    ]
    with trackers[0].open(RunConfig(name="first")), trackers[1].open(RunConfig(name="second")):
        assert wandb.run is not None
        assert wandb.run.id == trackers[0].run_id, "the first one, as it was before there was another"
        (tmp_path / "notes.txt").write_text("text")
        wandb.log_artifact(str(tmp_path / "notes.txt"), name="notes", type="text")
    assert wandb.run is None
    assert os.listdir(tmp_path / "wandb")
    assert any("artifact" in record["type"] for record in wandb_storage.records(str(trackers[0].run_id)))
