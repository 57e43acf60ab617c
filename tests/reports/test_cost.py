import pytest
import torch
from torch import Tensor, nn

from reports.metrics.cost import count_parameters, device_of, macs_per_second, real_time_factors
from spectrostream.interface import AudioCodec


class TinyCodec(nn.Module):
    """One convolution down and one up, with nothing quantized: its arithmetic can be done by hand."""

    sample_rate, channels, levels, is_causal, latency_samples = 48000, 2, 1, True, 0
    codebook_parameters = 64

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 8, kernel_size=4, stride=4)
        self.up = nn.ConvTranspose1d(8, 2, kernel_size=4, stride=4)
        self.tied = self.up.weight

    def encode(self, audio: Tensor, *, levels: int | None = None) -> Tensor:
        return self.down(audio)

    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        return self.up(codes)

    def kbps(self, levels: int) -> float:
        return 0.0

    def bits(self, codes: Tensor) -> int:
        return codes[0].numel()


class PlainCodec:
    """Outside torch: only the sentence."""

    sample_rate, channels, levels, is_causal, latency_samples = 48000, 2, 1, False, None

    def encode(self, audio: Tensor, *, levels: int | None = None) -> tuple[Tensor, str]:
        return audio, "its codes are no tensor"

    def decode(self, codes: tuple[Tensor, str], *, length: int) -> Tensor:
        return codes[0]

    def kbps(self, levels: int) -> float:
        return 1536.0

    def bits(self, codes: tuple[Tensor, str]) -> int:
        return codes[0][0].numel() * 16


def test_parameters_by_hand() -> None:
    counts = count_parameters(TinyCodec())
    assert counts.parameters == (2 * 8 * 4 + 8) + (8 * 2 * 4 + 2)
    assert counts.codebook_parameters == 64
    assert count_parameters(PlainCodec()) == (None, None)


def test_multiply_accumulates_by_hand() -> None:
    # 12 000 frames, each 2 x 8 x 4 products down and as many up
    assert macs_per_second(TinyCodec()) == 12000 * 64 * 2


def test_what_cannot_be_counted_is_not_a_number() -> None:
    recurrent = TinyCodec()
    recurrent.memory = nn.LSTM(8, 8)
    assert macs_per_second(recurrent) is None
    assert macs_per_second(PlainCodec()) is None


@pytest.mark.parametrize("codec", [TinyCodec(), PlainCodec()], ids=lambda codec: type(codec).__name__)
def test_real_time_factors_are_seconds_per_second(codec: AudioCodec) -> None:
    threads = torch.get_num_threads()
    factors = real_time_factors(codec, seconds=1.0, runs=3)
    assert 0 < factors.encode < 1
    assert 0 < factors.decode < 1
    assert factors.threads == threads
    with pytest.raises(ValueError, match="runs is 0"):
        real_time_factors(TinyCodec(), runs=0)


def test_the_device_is_that_of_the_weights() -> None:
    assert device_of(TinyCodec().to("meta")) == torch.device("meta")
    assert device_of(PlainCodec()) == torch.device("cpu")
