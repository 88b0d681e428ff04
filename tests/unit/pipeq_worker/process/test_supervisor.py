from __future__ import annotations

import pytest
from pipeq.contract.errors import SettingsError
from pipeq_worker.process.supervisor import metrics_ports


@pytest.mark.parametrize(
    ("port", "devices", "ports"),
    [
        (None, 3, [None] * 3),
        (0, 2, [0, 0]),
        (9108, 1, [9108]),
        (9108, 3, [9108, 9109, 9110]),
        (65534, 2, [65534, 65535]),
    ],
)
def test_each_device_has_the_next_port(port: int | None, devices: int, ports: list[int | None]) -> None:
    assert metrics_ports(port, devices) == ports


def test_there_must_be_as_many_ports_as_devices() -> None:
    with pytest.raises(SettingsError, match=r"metrics\.port: 3 devices need as many ports from 65534"):
        metrics_ports(65534, 3)
