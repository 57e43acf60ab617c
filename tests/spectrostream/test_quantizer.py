"""The residual quantizer: known answers, random levels and bypass, k-means start, moving averages, exact resume."""

import itertools
import re

import pytest
import torch
from tiny_quantizer import gaussian, quantizer_of, started
from torch import Tensor

from spectrostream.codebook_learning import CodebookLearning, kmeans, nearest_entries
from spectrostream.quantizer import QuantizerConfig, ResidualVectorQuantizer, commitment_loss, trainable_levels


def clustered(batch: int, frames: int, seed: int, *, centers: int = 10, dim: int = 4) -> Tensor:
    """Embeddings `[batch, dim, frames]` around fixed centers."""
    generator = torch.Generator().manual_seed(seed)
    choice = torch.randint(centers, (batch, frames), generator=generator)
    noise = 0.1 * torch.randn(batch, frames, dim, generator=generator)
    return (3 * gaussian(centers, dim)[choice] + noise).transpose(1, 2)


def counting_quantizer(levels: int, **changes: object) -> ResidualVectorQuantizer:
    """Every entry of every level is one: the quantization of anything is the number of levels."""
    quantizer = started(torch.zeros(1, 1, 2), levels=levels, codebook_size=2, **changes)
    quantizer.codebooks.fill_(1)
    return quantizer


def residual_energy(quantizer: ResidualVectorQuantizer, embeddings: Tensor) -> list[float]:
    """Mean squared residual after 0, 1, .. levels."""
    codes = quantizer.encode(embeddings, quantizer.config.levels)
    sums = [quantizer.decode(codes[:, :n]) for n in range(quantizer.config.levels + 1)]
    return [(embeddings - partial).square().mean().item() for partial in sums]


def test_the_nearest_entry_and_the_lowest_index_on_a_tie():
    codebook = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    vectors = torch.tensor([[0.1, 0.2], [1.9, 0.1], [0.0, 5.0], [1.0, 0.0], [1.0, 1.0], [-3.0, -3.0]])
    assert nearest_entries(vectors, codebook, codebook.square().sum(1)).tolist() == [0, 1, 2, 0, 0, 0]


def test_levels_quantize_what_is_left():
    quantizer = quantizer_of(dim=1, levels=3, codebook_size=2, initial_vectors=2)
    quantizer.codebooks.copy_(torch.tensor([[[-8.0], [8.0]], [[-4.0], [4.0]], [[-2.0], [2.0]]]))
    embeddings = torch.tensor([[[7.0, -13.0, 3.0]]])
    codes = quantizer.encode(embeddings, 3)
    # 7 = 8 - 4 + 2 + 1; -13 = -8 - 4 - 2 + 1; 3 = 8 - 4 - 2 + 1
    assert codes.tolist() == [[[1, 0, 1], [0, 0, 0], [1, 0, 0]]]
    assert quantizer.decode(codes).tolist() == [[[6, -14, 2]]]
    assert quantizer.decode(codes[:, :1]).tolist() == [[[8, -8, 8]]]
    assert quantizer.decode(codes[:, :0]).tolist() == [[[0, 0, 0]]]


def test_codes_keep_batch_and_frames_apart():
    quantizer = quantizer_of()
    embeddings = gaussian(3, 4, 5)
    codes = quantizer.encode(embeddings, 2)
    assert codes.shape == (3, 2, 5)
    for example in range(3):
        for frame in range(5):
            alone = quantizer.encode(embeddings[example : example + 1, :, frame : frame + 1], 2)
            assert torch.equal(alone.flatten(), codes[example, :, frame])


def test_more_levels_leave_less():
    embeddings = gaussian(4, 4, 128)
    quantizer = started(embeddings, levels=8)
    for data in (embeddings, gaussian(4, 4, 128, seed=1)):
        energy = residual_energy(quantizer, data)
        assert all(after < before for before, after in itertools.pairwise(energy))
    assert residual_energy(quantizer, embeddings)[-1] < 0.02


def test_training_draws_from_the_official_numbers_of_levels():
    assert trainable_levels(64) == (*range(1, 17), *range(18, 33, 2), *range(36, 65, 4))
    assert len(trainable_levels(64)) == 32
    assert trainable_levels(1) == (1,)
    assert trainable_levels(5) == (1, 2, 3, 4, 5)
    assert trainable_levels(35)[-3:] == (30, 32, 35)
    assert trainable_levels(70)[-3:] == (64, 68, 70)


def test_drawn_levels_are_uniform_over_the_choices_and_so_favour_low_rates():
    quantizer = counting_quantizer(64)
    drawn = quantizer(torch.zeros(6400, 1, 1)).embeddings.flatten().round().long()
    counts = torch.bincount(drawn, minlength=65)
    assert counts.nonzero().flatten().tolist() == list(trainable_levels(64))
    # 200 +- 14 each
    assert counts[counts > 0].min() > 130
    assert counts[counts > 0].max() < 270
    assert 0.47 < (drawn <= 16).float().mean() < 0.53


def test_without_bypass_the_decoder_sees_each_examples_own_levels():
    embeddings = gaussian(32, 4, 3, seed=1)
    quantizer = started(gaussian(4, 4, 64), levels=6)
    before = quantizer.codebooks.clone()
    result = quantizer(embeddings)
    entries = torch.stack([before[level][result.codes[:, level]] for level in range(6)])
    partial_sums = entries.cumsum(0).transpose(2, 3)  # [levels, batch, dim, frames]
    is_match = (partial_sums - result.embeddings).abs().amax((2, 3)) < 1e-5
    assert (is_match.sum(0) == 1).all()
    levels = is_match.int().argmax(0) + 1
    assert set(levels.tolist()) == set(range(1, 7))
    expected = commitment_loss(
        embeddings.transpose(1, 2), partial_sums.transpose(2, 3), levels, torch.ones(32, dtype=torch.bool)
    )
    torch.testing.assert_close(result.commitment_loss, expected)


def test_with_bypass_the_decoder_sees_the_embeddings_and_nothing_is_committed():
    embeddings = gaussian(8, 4, 3, seed=1).requires_grad_()
    result = started(gaussian(4, 4, 64), bypass_probability=1.0)(embeddings)
    assert torch.equal(result.embeddings, embeddings)
    assert result.commitment_loss.item() == 0
    result.commitment_loss.backward()
    assert embeddings.grad.abs().max() == 0


def test_half_of_the_examples_are_bypassed():
    quantizer = counting_quantizer(4, bypass_probability=0.5)
    seen = quantizer(torch.zeros(2000, 1, 1)).embeddings.flatten()
    assert 0.45 < (seen == 0).float().mean() < 0.55


@pytest.mark.parametrize("bypass_probability", [0.0, 0.5])
def test_the_gradient_passes_straight_through(bypass_probability):
    quantizer = started(gaussian(4, 4, 64), bypass_probability=bypass_probability)
    embeddings, direction = gaussian(8, 4, 3, seed=1).requires_grad_(), gaussian(8, 4, 3, seed=2)
    (quantizer(embeddings).embeddings * direction).sum().backward()
    torch.testing.assert_close(embeddings.grad, direction)


def commitment_example() -> tuple[Tensor, Tensor]:
    """Two examples of one frame in two dimensions, three levels: distances (1, 0.5, 0) and (2, 8, 8)."""
    embeddings = torch.tensor([[[1.0, 1.0]], [[2.0, 0.0]]], requires_grad=True)
    first, second = [[0.0, 0], [1, 0], [1, 1]], [[0.0, 0], [-2, 0], [-2, 0]]
    return embeddings, torch.tensor([first, second]).transpose(0, 1)[:, :, None]


def test_commitment_known_answers():
    embeddings, partial_sums = commitment_example()
    levels = torch.tensor([2, 1])
    for counts, expected in (([True, True], (0.75 + 2) / 2), ([True, False], 0.75), ([False, True], 2.0)):
        loss = commitment_loss(embeddings, partial_sums, levels, torch.tensor(counts))
        assert loss.item() == pytest.approx(expected)


def test_commitment_gradient_is_towards_the_quantization():
    embeddings, partial_sums = commitment_example()
    commitment_loss(embeddings, partial_sums, torch.tensor([2, 1]), torch.tensor([True, False])).backward()
    # d/de of ((e - (0, 0))^2 + (e - (1, 0))^2) / 2 dimensions / 2 levels at (1, 1)
    torch.testing.assert_close(embeddings.grad, torch.tensor([[[0.5, 1.0]], [[0.0, 0.0]]]))


def test_commitment_of_nothing_is_zero_with_a_finite_gradient():
    embeddings, partial_sums = commitment_example()
    loss = commitment_loss(embeddings, partial_sums, torch.tensor([2, 1]), torch.tensor([False, False]))
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad.abs().max() == 0


def test_everything_is_bypassed_until_enough_vectors_are_collected():
    quantizer = quantizer_of(initial_vectors=50)
    before = quantizer.codebooks.clone()
    for step, collected in enumerate((20, 40)):
        embeddings = gaussian(2, 4, 10, seed=step)
        result = quantizer(embeddings)
        assert torch.equal(result.embeddings, embeddings)
        assert (result.is_started, result.commitment_loss.item()) == (False, 0)
        assert result.codes.shape == (2, 0, 10)
        assert int(quantizer.learning.collected_count) == collected
        assert torch.equal(quantizer.codebooks, before)
    assert torch.equal(quantizer.learning.collected[20:40], gaussian(2, 4, 10, seed=1).transpose(1, 2).reshape(-1, 4))
    quantizer(gaussian(2, 4, 10, seed=2))
    assert quantizer.learning.is_started
    assert not torch.equal(quantizer.codebooks, before)
    result = quantizer(gaussian(2, 4, 10, seed=3))
    assert result.is_started
    assert result.codes.shape == (2, 3, 10)


def test_the_start_counts_in_vectors_per_step():
    quantizer = quantizer_of(initial_vectors=60)
    for step in range(3):
        quantizer(gaussian(2, 4, 10, seed=step))
    # 20 vectors a step, whatever was collected
    torch.testing.assert_close(quantizer.learning.usage.sum(1), torch.full((3,), 20.0))
    torch.testing.assert_close(
        quantizer.learning.sums, quantizer.codebooks * quantizer.learning.usage[..., None], rtol=0, atol=0
    )


def test_kmeans_finds_two_well_separated_clusters():
    centers = torch.tensor([[10.0, 0.0], [-10.0, 5.0]])
    vectors = torch.cat([center + 0.1 * gaussian(100, 2, seed=i) for i, center in enumerate(centers)])
    centroids, indices = kmeans(vectors, 2, 10)
    order = centroids[:, 0].argsort(descending=True)
    means = torch.stack([vectors[:100].mean(0), vectors[100:].mean(0)])
    torch.testing.assert_close(centroids[order], means)
    assert (indices[:100] == order[0]).all()
    assert (indices[100:] == order[1]).all()


def test_kmeans_covers_every_cluster_and_every_entry_is_chosen():
    centers = 20 * gaussian(8, 4)
    vectors = (centers[:, None] + 0.1 * gaussian(8, 64, 4, seed=1)).flatten(0, 1)
    centroids, indices = kmeans(vectors, 64, 10)
    assert (vectors - centroids[indices]).square().sum(1).max() < 1
    assert torch.bincount(indices, minlength=64).min() > 0


def test_kmeans_with_more_entries_than_points_restarts_the_empty_ones_at_points():
    vectors = torch.tensor([[1.0], [2.0]]).repeat(10, 1)
    centroids, indices = kmeans(vectors, 8, 5)
    assert set(centroids.flatten().tolist()) == {1.0, 2.0}
    assert torch.equal(centroids[indices], vectors)


def learning_of_two_entries(revival_threshold: float) -> tuple[CodebookLearning, Tensor]:
    """One level of two entries in one dimension: 2 (mass 4) and -1 (mass 1)."""
    learning = CodebookLearning(
        (1, 2, 1), decay=0.75, initial_vectors=2, kmeans_iterations=1, revival_threshold=revival_threshold
    )
    learning.usage.copy_(torch.tensor([[4.0, 1.0]]))
    learning.sums.copy_(torch.tensor([[[8.0], [-1.0]]]))
    return learning, torch.tensor([[[2.0], [-1.0]]])


def test_moving_average_known_answer():
    learning, codebooks = learning_of_two_entries(revival_threshold=0.0)
    indices, residuals = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[[1.0], [3.0], [5.0], [-2.0]]])
    learning.update(codebooks, indices, residuals)
    # usage 0.75 * (4, 1) + 0.25 * (3, 1); sums 0.75 * (8, -1) + 0.25 * (9, -2)
    torch.testing.assert_close(learning.usage, torch.tensor([[3.75, 1.0]]))
    torch.testing.assert_close(codebooks, torch.tensor([[[8.25 / 3.75], [-1.25]]]))


def test_an_entry_below_its_share_is_moved_to_a_vector_and_gets_an_equal_share():
    learning, codebooks = learning_of_two_entries(revival_threshold=0.5)
    learning.update(codebooks, torch.tensor([[0, 0, 0, 0]]), torch.full((1, 4, 1), 6.0))
    # usage 0.75 * (4, 1) + 0.25 * (4, 0) = (4, 0.75); equal share 2.375; 0.75 is below half of it
    torch.testing.assert_close(learning.usage, torch.tensor([[4.0, 2.375]]))
    torch.testing.assert_close(codebooks, torch.tensor([[[(0.75 * 8 + 0.25 * 24) / 4], [6.0]]]))


def collapsed_usage(revival_threshold: float) -> tuple[ResidualVectorQuantizer, float]:
    """A started quantizer fed with three far points only; the lowest usage in equal shares that it then showed."""
    quantizer = started(gaussian(4, 4, 64), decay=0.8, revival_threshold=revival_threshold)
    points = 10 + 5 * gaussian(3, 4, seed=7)
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        quantizer(points[torch.randint(3, (4, 8), generator=generator)].transpose(1, 2))
    usage = quantizer.learning.usage
    return quantizer, (usage / usage.mean(1, keepdim=True)).min().item()


@pytest.mark.slow
def test_dead_entries_come_back_where_the_input_is():
    quantizer, lowest = collapsed_usage(revival_threshold=0.1)
    assert lowest > 0.05
    points = 10 + 5 * gaussian(3, 4, seed=7)
    assert torch.cdist(quantizer.codebooks[0], points).min(1).values.max() < 1
    quantizer, lowest = collapsed_usage(revival_threshold=0.0)
    assert lowest < 1e-4
    assert torch.cdist(quantizer.codebooks[0], points).min(1).values.max() > 5


@pytest.mark.slow
def test_learning_follows_the_data():
    quantizer = started(gaussian(4, 4, 64), decay=0.9)
    test = clustered(4, 64, seed=99)
    before = residual_energy(quantizer, test)[-1]
    for step in range(80):
        quantizer(clustered(4, 64, seed=step))
    after = residual_energy(quantizer, test)[-1]
    assert after < 0.1 * before
    assert after < 0.01  # the noise within clusters, quantized by the later levels


@pytest.mark.slow
@pytest.mark.parametrize(("token_groups", "dim"), [(1, 4), (2, 2)])
@pytest.mark.parametrize("steps_before", [0, 1, 2, 3, 7])
def test_a_resumed_quantizer_goes_on_exactly(steps_before, token_groups, dim):
    # started during the third step
    changes = {"initial_vectors": 50 * token_groups, "bypass_probability": 0.5, "decay": 0.8, "revival_threshold": 0.5}
    straight = quantizer_of(dim, token_groups, **changes)
    for step in range(steps_before):
        straight(clustered(2, 10, seed=step))
    torch.manual_seed(123)
    resumed = quantizer_of(dim, token_groups, **changes)
    resumed.load_state_dict({name: value.clone() for name, value in straight.state_dict().items()})
    assert resumed.learning.is_started == straight.learning.is_started == (steps_before >= 3)
    outputs = []
    for quantizer in (straight, resumed):
        torch.manual_seed(5)
        outputs.append([quantizer(clustered(2, 10, seed=step)) for step in range(steps_before, 10)])
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first.embeddings, second.embeddings)
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.commitment_loss, second.commitment_loss)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_statistics_know_equal_use_and_collapse():
    learning, _ = learning_of_two_entries(revival_threshold=0.1)
    for usage, perplexity, used in (([3.0, 3.0], 2.0, 1.0), ([5.0, 0.0], 1.0, 0.5), ([0.0, 0.0], 1.0, 0.0)):
        learning.usage.copy_(torch.tensor([usage]))
        statistics = learning.statistics()
        assert statistics.perplexity.tolist() == pytest.approx([perplexity])
        assert statistics.used.tolist() == [used]
    learning.usage.copy_(torch.tensor([[9.0, 1.0]]))
    # 2 ** (0.9 log2(1 / 0.9) + 0.1 log2(10))
    assert learning.statistics().perplexity.item() == pytest.approx(1.3842, abs=1e-4)
    assert learning.statistics().used.item() == 1


def test_codes_under_autocast_are_those_without():
    embeddings = gaussian(4, 4, 128)
    quantizer = started(embeddings, codebook_size=64)
    expected = quantizer.encode(embeddings, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(embeddings, 3), expected)
        assert torch.equal(quantizer(embeddings).codes, expected)


def test_half_precision_embeddings_keep_their_type_and_learn_in_float32():
    quantizer = started(gaussian(4, 4, 64))
    result = quantizer(gaussian(4, 4, 8, seed=1).bfloat16())
    assert result.embeddings.dtype == torch.bfloat16
    assert result.commitment_loss.dtype == quantizer.codebooks.dtype == torch.float32


def test_codebooks_are_learnt_without_gradients():
    quantizer = quantizer_of()
    assert list(quantizer.parameters()) == []
    assert quantizer.config.bits_per_index == 4
    assert QuantizerConfig().bits_per_index == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 0}, "quantizer.levels = 0 is not possible; allowed: 1 or more"),
        ({"codebook_size": 1}, "quantizer.codebook_size = 1 is not possible; allowed: 2 or more"),
        ({"bypass_probability": 1.5}, "quantizer.bypass_probability = 1.5 is not possible; allowed: 0 .. 1"),
        ({"decay": 1.0}, "quantizer.decay = 1.0 is not possible; allowed: above 0, below 1"),
        (
            {"initial_vectors": 1023},
            "quantizer.initial_vectors = 1023 is not possible; allowed: at least model.quantizer.codebook_size = 1024",
        ),
        ({"kmeans_iterations": -1}, "quantizer.kmeans_iterations = -1 is not possible; allowed: 0 or more"),
        ({"revival_threshold": 1.0}, "quantizer.revival_threshold = 1.0 is not possible; allowed: 0 or more, below 1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantizerConfig(**change)
