"""These run by ``make test-device``, or tests/devices/test_suite.py, in a process whose device is another."""

from unittest import mock

import pytest
import torch
from devices import plugin

from d9d_tracker.bank import buffers


def pytest_collection_modifyitems(config, items):
    if not config.pluginmanager.hasplugin("devices.plugin"):
        for item in items:
            if "on_device" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="runs with -p devices.plugin, as test_suite.py does"))


@pytest.fixture
def on(recorded):
    """Returns the records of what a function logs on the device or the host; ``bank`` is where the run is to be."""

    def records(name, log, bank=None, **config):
        where = torch.device("cpu") if (bank or name) == "cpu" else torch.device(plugin.NAME, 0)
        with mock.patch.object(buffers, "device_of", return_value=where):
            tracker = recorded(**{"sync_every": 4, "max_histograms": 64, "max_scalars": 64, **config})
            with tracker.open() as run:
                log(run, name)
            return {(one.name, tuple(one.context.items()), one.step): one.value for one in tracker.run.records}

    return records
