"""JSON lines, and the troubles that an SDK can make, by the names of series."""

import os
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from d9d_tracker.backend import RecordTracker
from d9d_tracker.config import TrackerConfig
from d9d_tracker.provider.jsonl import JsonlRun
from d9d_tracker.record import Record


class TroubledConfig(TrackerConfig):
    provider: Literal["troubled"] = "troubled"
    path: Path


class SecretConfig(TroubledConfig):
    provider: Literal["secret"] = "secret"  # pyright: ignore[reportIncompatibleVariableOverride] another name
    token: SecretStr


class TroubledRun(JsonlRun):
    def write_record(self, record: Record) -> None:
        once = self._path.parent / f"once-{record.name}"
        if record.name == "refused":
            raise ValueError("no such thing")
        if record.name == "crash" and record.step == 7 and not once.exists():
            once.touch()
            os._exit(3)
        if record.name == "down" and record.step == 7 and not once.exists():
            once.touch()
            raise TimeoutError("down for once")
        if record.step == 7 and (breaks := self._path.parent / "breaks").exists():
            if breaks.read_text() and time.time() - float(breaks.read_text()) > 0.05:
                breaks.unlink()
                os._exit(3)  # when it is tried again
            if not breaks.read_text():
                breaks.write_text(str(time.time()))
            raise TimeoutError("down for all")
        if record.name == "slow":
            (self._path.parent / "slow").touch()
            deadline = time.monotonic() + 15
            while not (self._path.parent / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        super().write_record(record)

    def sync(self) -> None:
        trouble = self._path.parent / "reset"
        if trouble.exists():
            trouble.unlink()
            raise ConnectionResetError("the server's, not the writer's")
        super().sync()
        dies = self._path.parent / "dies stored"
        if dies.exists() and self.step >= 9:
            dies.unlink()
            os._exit(3)

    def release(self) -> None:
        (self._path.parent / "ended").write_text(repr(self._error))
        (self._path.parent / "heavy").write_text(" ".join({"torch", "triton"} & set(sys.modules)))
        super().release()


class TroubledTracker(RecordTracker[TroubledConfig]):
    def open_run(self, properties, run_id):
        self.config.path.mkdir(parents=True, exist_ok=True)
        if properties.name == "wrong":
            raise ValueError("a wrong configuration")
        run_id = run_id or "run"
        with (self.config.path / "writers").open("a") as writers:
            writers.write(f"{os.getpid()}\n")
        return TroubledRun(self.config.path / f"{run_id}.jsonl", run_id, properties)
