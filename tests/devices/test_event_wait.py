"""How the collector's thread asks CUDA for relaxed rules, with a driver and an event that only take notes."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from d9d_tracker.bank.staging import Window
from d9d_tracker.devices import event_wait

GLOBAL, RELAXED = 0, 2  # CU_STREAM_CAPTURE_MODE_...


class Driver:
    """The driver's parts of interest: the calling thread's mode, swapped with the caller's, and its device."""

    mode = GLOBAL
    device = 0
    hipThreadExchangeStreamCaptureMode: Any = None  # noqa: N815 (HIP's name)

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        before, self.device = self.device, device
        yield
        self.device = before

    def cuThreadExchangeStreamCaptureMode(self, place: Any) -> int:  # noqa: N802 (the driver's name for it)
        self.mode, place._obj.value = place._obj.value, self.mode
        return 0


class Event:
    device = 1

    def __init__(self, driver: Driver, error: Exception | None = None):
        self.driver, self.error = driver, error
        self.mode_of_wait: int | None = None
        self.device_of_wait: int | None = None

    def synchronize(self) -> None:
        self.mode_of_wait, self.device_of_wait = self.driver.mode, self.driver.device
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def _no_driver_known() -> Iterator[None]:
    event_wait._exchange_capture_mode.cache_clear()
    yield
    event_wait._exchange_capture_mode.cache_clear()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    # By its name alone, for the tests of the simulated GPU may have loaded one from a folder.
    monkeypatch.setattr(ctypes, "CDLL", lambda path: {"libcuda.so.1": driver}[Path(path).name])
    monkeypatch.setattr(torch.cuda, "device", driver.on)
    return driver


def test_waits_under_relaxed_rules_and_restores_those_before(driver: Driver) -> None:
    event: Any = Event(driver)
    event_wait.wait_for(event)
    assert event.mode_of_wait == RELAXED
    assert driver.mode == GLOBAL


def test_waits_on_the_device_of_the_event(driver: Driver) -> None:
    event: Any = Event(driver)
    event_wait.wait_for(event)
    assert event.device_of_wait == event.device
    assert driver.device == 0


def test_windows_wait_this_way(driver: Driver) -> None:
    event: Any = Event(driver)
    packed = torch.zeros(0, dtype=torch.float64)
    window = Window(0, steps=[7], times=[0.0], packed=packed, ready=event, unfinished=None, scalars=[], histograms=[])
    assert window.wait().steps == [7]
    assert event.mode_of_wait == RELAXED


def test_an_error_of_the_device_restores_the_rules_too(driver: Driver) -> None:
    event: Any = Event(driver, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        event_wait.wait_for(event)
    assert driver.mode == GLOBAL


def test_waits_where_the_driver_is_not_found(driver, monkeypatch, caplog) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    event: Any = Event(driver)
    event_wait.wait_for(event)
    event_wait.wait_for(event)
    assert event.mode_of_wait == GLOBAL
    assert caplog.text.count("libcuda.so.1 is not found") == 1


def test_the_library_is_the_one_that_torch_has_loaded(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel for ROCm brings its own; a second one in the process would have rules of its own."""
    (torchs,) = Path(torch.__file__).parent.glob("lib/libtorch_python.so")
    assert event_wait._loaded("libtorch_python.so") == str(torchs)
    assert event_wait._loaded("libamdhip64.so") == "libamdhip64.so"
    driver.hipThreadExchangeStreamCaptureMode = driver.cuThreadExchangeStreamCaptureMode
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(event_wait, "_loaded", lambda library: f"/wheel/{library}")
    monkeypatch.setattr(ctypes, "CDLL", {"/wheel/libamdhip64.so": driver}.__getitem__)
    event: Any = Event(driver)
    event_wait.wait_for(event)
    assert event.mode_of_wait == RELAXED
