"""Opening a device, its timer and what it says about itself."""

import json
from types import SimpleNamespace

import pytest
import torch

from calibrate.device import Device
from sim.types import BadInput


def test_the_cpu():
    device = Device.open("cpu")
    assert torch.get_num_threads() == 1
    assert not device.is_cuda
    device.synchronize()
    device.reset_peak()
    assert device.peak_bytes() > 10_000_000  # torch alone is more
    assert device.memory_bytes() is None
    assert device.sm_clock_mhz() is None
    assert device.power_w() is None
    about = device.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["kind"] == "cpu"
    assert about["device"]
    assert about["torch"] == torch.__version__
    assert about["threads"] == 1


def test_the_timer_measures_what_is_between(monkeypatch):
    ticks = iter([2.0, 2.5])
    monkeypatch.setattr("calibrate.device.perf_counter", lambda: next(ticks))
    timer = Device.open("cpu").timer()
    timer.start()
    timer.stop()
    assert timer.elapsed_ms() == 500.0


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_a_device_that_does_not_exist(name):
    with pytest.raises(BadInput, match=f"device '{name}': valid are cpu, cuda, cuda:N"):
        Device.open(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=f"device '{name}': torch .* sees no CUDA GPU.*valid: cpu"):
        Device.open(name)


def test_a_gpu_is_opened_without_cudnns_attention(monkeypatch):
    """It would build a plan for every new shape of a padded batch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    switched = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    assert Device.open("cuda").is_cuda
    assert switched == [False]


def test_a_gpu_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match="device 'cuda:2': this machine has 2; valid: cuda:0 to 1"):
        Device.open("cuda:2")


class Nvml:
    """A library that knows one GPU, and in some sandboxes nothing."""

    class NVMLError(Exception):
        pass

    def __init__(self, blind=False):
        self.blind = blind

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if self.blind or uuid != "GPU-1234":
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetClockInfo(self, _handle, kind):
        return {1: 1980}[kind]

    def nvmlDeviceGetPowerUsage(self, _handle):
        return 612_500

    def nvmlSystemGetDriverVersion(self):
        if self.blind:
            raise self.NVMLError
        return b"580.159.03"


@pytest.mark.parametrize(
    ("blind", "found"), [(False, (1980.0, 612.5, "580.159.03")), (True, (None, None, None))]
)
def test_clock_power_and_driver_are_read_where_they_can_be(blind, found, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(uuid="1234")
    )
    device = Device(torch.device("cpu"))
    device._nvml = Nvml(blind)
    assert (device.sm_clock_mhz(), device.power_w(), device._driver()) == found
