"""These run by ``make test-device``, or tests/devices/test_suite.py, in a process whose device is another."""

import pytest


def pytest_collection_modifyitems(config, items):
    if not config.pluginmanager.hasplugin("devices.plugin"):
        for item in items:
            if "on_device" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="runs with -p devices.plugin, as test_suite.py does"))
