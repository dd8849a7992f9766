"""What stands for a GPU on the CPU: its device, its paged kernel, its CUDA graphs."""

import torch

from calibrate.attention import Group, loop
from calibrate.device import Device, Timer
from calibrate.graphs import Captured


def in_place(q, keys, values, table, rows, lengths, spans, page):
    """What `calibrate.paged.paged_attention` computes, in plain torch."""
    assert (spans >= lengths).all()
    out = []
    for query, row, length, span in zip(q, rows, lengths, spans, strict=True):
        places = torch.arange(int(span))
        slots = table[row, places // page].long() * page + places % page
        k, v = (x[slots][:length] for x in (keys, values))
        out.append(loop(query[None], k, v, Group.of([1], [int(length)], q.device)))
    return torch.cat(out)


class Replay:
    """Stands for a CUDA graph: decodes what is in its inputs, into its outputs."""

    def __init__(self, decode, inputs):
        self.decode, self.inputs = decode, inputs
        self.tokens = decode(inputs)

    def replay(self):
        self.tokens.copy_(self.decode(self.inputs))


def capture(self, size):
    """Stands for `DecodeGraphs._capture`."""
    replay = Replay(self._decode, self._spare.repeat(1, size))
    return Captured(replay, replay.inputs, replay.tokens)


class Standin(Device):
    """A device that says it is an H200 with 2 GiB."""

    name = "NVIDIA H200"

    def __init__(self):
        super().__init__(Device.open("cpu").torch_device)  # on one thread
        self.is_cuda = True

    @classmethod
    def open(cls, _name):
        return cls()

    def timer(self):
        return Timer(cuda=False)

    def synchronize(self):
        pass

    def reset_peak(self):
        pass

    def peak_bytes(self):
        return 100 << 20

    def memory_bytes(self):
        return 1 << 30, 2 << 30

    def sm_clock_mhz(self):
        return 1980.0

    def describe(self):
        return {"device": self.name, "kind": "cuda", "torch": torch.__version__}
